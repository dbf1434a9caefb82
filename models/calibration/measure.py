"""Measuring what changes no bit: which batches repeat the reference batch's rows, and how long each takes.

A network's kernels are chosen by the shape of its input, so a row's result may differ in its last bits from one batch
size to another. Every batch is padded to a size whose rows agree bitwise with the reference batch's, and then a
picture does not depend on what shares the batch (docs/decisions/0003).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TypeVar

import torch

from models.calibration.cache import FileCalibrations, calibration_key
from models.calibration.networks import Networks, free_memory, load_networks
from models.calibration.probes import Network, Probes, only
from models.calibration.result import DEPENDS, BatchSize, Calibration, NetworkCalibration
from models.cpu_layers import FEWEST_ROWS
from models.flop import flop_of
from models.lanes import Lanes, let_go
from models.pack import Pack

COMPILED_SIZES = (1, 2, 4, 8, 16, 32, 48)  # compiling takes about half a minute a size on a CPU
LONGEST_BATCH_S = 2.0  # a longer one has everyone wait too long for its tick, so it is not tried
HOPELESS = 8.0  # after n tries, what is 8/n times slower than the best is not tried again
REPEATS = 5

_Found = TypeVar("_Found")
_Way = TypeVar("_Way")
Steps = Generator[_Found | None, None, _Found]
"""Work in short steps. Between steps the caller may do other work, and use what was found so far."""


def finished(steps: Generator[object, None, _Found]) -> _Found:
    """Take all steps, one after the other."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: _Found = end.value
            return found


def measuring(
    networks: Networks, probes: tuple[Probes, Probes | None], lanes: Lanes, known: Calibration | None = None
) -> Steps[Calibration]:
    """Measure a pack's networks on the lanes of its layout, which nothing else should use during a step.

    A step is a batch on every lane: up to `LONGEST_BATCH_S`, unless a single row takes longer. First it is found which
    batches repeat the reference, network by network, and may be used at once; then how long each takes.

    Args:
        networks: what is measured.
        probes: the networks' own; an argument because encoding prompts is not for every thread.
        lanes: where.
        known: times of an earlier process. Bits are compared in every process: oneDNN makes its kernels anew.
    """
    by_rule, (of_denoiser, of_classifier) = networks.by_rule, probes
    measured = {"denoiser": _Measured(only(networks.denoiser.forward), of_denoiser, lanes)}
    if networks.steering is not None and of_classifier is not None:
        measured["classifier"] = _Measured(networks.steering.gradient, of_classifier, lanes)
    found = by_rule
    for name, network in measured.items():
        compared = yield from network.compared(getattr(by_rule, name), getattr(known, name) if known else None)
        found = _with(found, name, compared)
        yield found
    for name, network in measured.items() if not known else ():
        timed = yield from network.timed(getattr(found, name))
        found = _with(found, name, timed)
    return found


def _with(found: Calibration, name: str, network: NetworkCalibration) -> Calibration:
    return replace(found, denoiser=network) if name == "denoiser" else replace(found, classifier=network)


def calibrated(
    pack: Pack, device: torch.device, *, precision: str = "auto", compiled: bool = False, again: bool = False
) -> Calibration:
    """The calibration of a pack on this device, measured now; times may be from the user's cache folder.

    Args:
        pack: what is measured.
        device: where.
        precision: as of `load_networks`.
        compiled: as of `load_networks`.
        again: take times anew too.

    Raises:
        InvalidPack: the device has no memory for it.
    """
    kept = FileCalibrations()
    networks = load_networks(pack, device, precision=precision, compiled=compiled)
    key = calibration_key(pack, device, networks.by_rule)
    with Lanes(networks.by_rule.layout) as lanes:
        known = None if again else kept.load(key)
        found = finished(measuring(networks, networks.probes(), lanes, known))
    if known is None:
        kept.save(key, found)
    if device.type != "cpu":
        free_memory()
    return found


def in_turns(ways: Mapping[_Way, Callable[[], float]]) -> dict[_Way, float]:
    """The best of several interleaved tries of each, so that other load slows all of them alike."""
    return finished(_in_turns(ways))


def _in_turns(ways: Mapping[_Way, Callable[[], float]]) -> Generator[None, None, dict[_Way, float]]:
    best = dict.fromkeys(ways, math.inf)
    for number in range(1 + REPEATS):
        for way, measure in ways.items():
            if number == 0 or best[way] < HOPELESS / number * min(best.values()):
                best[way] = min(best[way], measure())
                yield
    return best


@dataclass(frozen=True)
class _Measured:
    """One network, what it is measured with, and where."""

    network: Network
    probes: Probes
    lanes: Lanes

    def compared(
        self, by_rule: NetworkCalibration, known: NetworkCalibration | None
    ) -> Generator[None, None, NetworkCalibration]:
        """Which batches repeat the reference, with a first idea of how long each takes."""
        reference, compiled = by_rule.reference, by_rule.precision.compiled
        row_s = {size.rows: size.row_ms / 1000 for size in known.measured} if known else {}
        if not known:
            self.lanes.run([partial(self.network, *self.probes.batch(reference))])  # alone, for `_bits`' reason
            row_s[reference] = self._row_s(reference)
            yield

        def is_long(rows: int) -> bool:
            return rows * min(row_s.values()) * self.lanes.count > LONGEST_BATCH_S

        tried = row_s if known else {reference, *(COMPILED_SIZES if compiled else self.probes.sizes)}
        bits: dict[int, str] = {reference: ""} if is_long(reference) else {}
        for size in sorted(tried):
            if is_long(size):
                break
            try:
                bits[size] = yield from self._bits(size)
                if not known:
                    row_s[size] = self._row_s(size)
            except torch.OutOfMemoryError as error:
                let_go(error)
                free_memory()
                break  # there is none for larger ones either
            yield
        if reference not in bits:
            return by_rule
        measured = [BatchSize(rows=size, row_ms=1000 * row_s[size], bits=digest) for size, digest in bits.items()]
        return replace(by_rule, measured=tuple(measured), row_flop=(known or by_rule).row_flop)

    def timed(self, compared: NetworkCalibration) -> Generator[None, None, NetworkCalibration]:
        """The same with the best of some tries, and with the operations of a row."""
        rows = [size.rows for size in compared.measured]
        row_flop = compared.row_flop
        if not row_flop and rows:
            counted = min(FEWEST_ROWS, rows[-1])  # fewer would be padded
            batch, compiled = self.probes.batch(counted), compared.precision.compiled
            [flop] = self.lanes.run([lambda: flop_of(lambda: self.network(*batch), compiled=compiled)])
            row_flop = flop // counted
            yield
        row_s = {size.rows: size.row_ms / 1000 for size in compared.measured}
        if len(rows) > 1:
            try:
                row_s = yield from _in_turns({size: partial(self._row_s, size) for size in rows})
            except torch.OutOfMemoryError as error:  # beside what ticks hold now; the first idea has to do
                let_go(error)
                free_memory()
        measured = tuple(replace(size, row_ms=1000 * row_s[size.rows]) for size in compared.measured)
        return replace(compared, measured=measured, row_flop=row_flop)

    def _row_s(self, size: int) -> float:
        """Seconds of the device's time a row takes in a batch of `size`, every lane running one."""
        batch = self.probes.batch(size)
        calls = [lambda: self.network(*batch)[0].sum().item()] * self.lanes.count  # .item() waits for the device
        if self.probes.device.type != "cpu":
            self.lanes.run(calls)  # kernels are loaded and chosen at the first
        started = time.perf_counter()
        self.lanes.run(calls)
        return (time.perf_counter() - started) / (size * self.lanes.count)

    def _bits(self, size: int) -> Generator[None, None, str]:
        """A digest of the probes' results, the same wherever they stand in the batch; or `DEPENDS` if not.

        The first batch runs alone. oneDNN makes a kernel at the first call of a shape, and of two calls at once that
        made theirs, one in fifty got a kernel that rounds otherwise, for as long as the process lived.
        """
        seen: dict[int, set[bytes]] = {number: set() for number in range(len(self.probes.rows))}
        batches = self.probes.arranged(size)
        at_once = 1
        while arranged := list(islice(batches, at_once)):
            outputs = self.lanes.run([partial(self.network, *batch) for _, batch in arranged])
            for (numbers, _), (output, *_rest) in zip(arranged, outputs, strict=True):
                for position, number in numbers.items():
                    seen[number].add(output[position].cpu().numpy().tobytes())
            yield
            at_once = self.lanes.count
        if any(len(results) > 1 for results in seen.values()):
            return DEPENDS
        return hashlib.sha256(b"".join(result for results in seen.values() for result in results)).hexdigest()[:12]
