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
from dataclasses import replace
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
from models.loading import Pack

COMPILED_SIZES = (1, 2, 4, 8, 16, 32, 48)  # compiling takes about half a minute a size on a CPU
LONGEST_BATCH_S = 2.0  # a longer one has everyone wait too long for its tick, so it is not tried
HOPELESS = 8.0  # what takes so many times the quickest's time is not tried again; half as many after two tries, ...
REPEATS = 5

_Found = TypeVar("_Found")
_Way = TypeVar("_Way")
Steps = Generator[_Found | None, None, _Found]
"""Work in short steps: between two its caller may do something else, and already use what was found so far."""


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

    A step is a batch on every lane: up to `LONGEST_BATCH_S`, unless a single row takes longer. What has been found so
    far is worth using: first which batches repeat the reference, then how long each takes.

    Args:
        networks: what is measured.
        probes: the networks' own; an argument because encoding prompts is not for every thread.
        lanes: where.
        known: times of an earlier process. Bits are compared in every process: oneDNN makes its kernels anew.
    """
    by_rule, (of_denoiser, of_classifier) = networks.by_rule, probes
    steps = _measuring(
        only(networks.denoiser.forward), of_denoiser, by_rule.denoiser, lanes, known.denoiser if known else None
    )
    found = yield from _as_part(steps, lambda one: replace(by_rule, denoiser=one))
    if networks.steering is not None and by_rule.classifier is not None and of_classifier is not None:
        half = found
        steps = _measuring(
            networks.steering.gradient, of_classifier, by_rule.classifier, lanes, known.classifier if known else None
        )
        found = yield from _as_part(steps, lambda one: replace(half, classifier=one))
    return found


def _as_part(
    steps: Steps[NetworkCalibration], whole: Callable[[NetworkCalibration], Calibration]
) -> Steps[Calibration]:
    """The same steps, with the network's calibration as part of the pack's."""
    while True:
        try:
            found = next(steps)
        except StopIteration as end:
            return whole(end.value)
        yield None if found is None else whole(found)


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
    kept.save(key, found)
    return found


def in_turns(ways: Mapping[_Way, Callable[[], float]]) -> dict[_Way, float]:
    """The best of some tries of each, one after the other: what else runs here then slows all of them, not one."""
    return finished(_in_turns(ways))


def _in_turns(ways: Mapping[_Way, Callable[[], float]]) -> Generator[None, None, dict[_Way, float]]:
    best = dict.fromkeys(ways, math.inf)
    for number in range(1 + REPEATS):
        for way, measure in ways.items():
            if number == 0 or best[way] < HOPELESS / number * min(best.values()):
                best[way] = min(best[way], measure())
                yield
    return best


def _measuring(
    network: Network, probes: Probes, by_rule: NetworkCalibration, lanes: Lanes, known: NetworkCalibration | None
) -> Steps[NetworkCalibration]:
    reference, compiled = by_rule.reference, by_rule.precision.compiled
    row_s = {size.rows: size.row_ms / 1000 for size in known.measured} if known else {}
    row_flop = known.row_flop if known else 0
    if not known:
        lanes.run([partial(network, *probes.batch(reference))])  # alone, for `_bits`' reason
        row_s[reference] = _row_s(network, probes, lanes, reference)
        yield None

    def is_long(rows: int) -> bool:
        return rows * min(row_s.values()) * lanes.count > LONGEST_BATCH_S

    tried = row_s if known else {reference, *(COMPILED_SIZES if compiled else probes.sizes)}
    bits: dict[int, str] = {reference: ""} if is_long(reference) else {}
    for size in sorted(tried):
        if is_long(size):
            break
        try:
            bits[size] = yield from _bits(network, probes, lanes, size)
            if not known:
                row_s[size] = _row_s(network, probes, lanes, size)
        except torch.OutOfMemoryError as error:
            let_go(error)
            free_memory()
            break  # there is none for larger ones either
        yield None

    def found() -> NetworkCalibration:
        measured = [BatchSize(rows=size, row_ms=1000 * row_s[size], bits=digest) for size, digest in bits.items()]
        return replace(by_rule, measured=tuple(measured), row_flop=row_flop)

    yield found()
    if not known:
        counted = reference if is_long(FEWEST_ROWS) else FEWEST_ROWS  # fewer would be padded
        batch = probes.batch(counted)
        row_flop = flop_of(lambda: network(*batch), compiled=compiled) // counted
        yield None
        if len(bits) > 1:
            row_s = yield from _in_turns({size: partial(_row_s, network, probes, lanes, size) for size in bits})
    return found()


def _row_s(network: Network, probes: Probes, lanes: Lanes, size: int) -> float:
    """Seconds of the device's time a row takes in a batch of `size`, every lane running one."""
    batch = probes.batch(size)
    calls = [lambda: network(*batch)[0].sum().item()] * lanes.count  # .item() waits for the device
    if probes.device.type != "cpu":
        lanes.run(calls)  # kernels are loaded and chosen at the first
    started = time.perf_counter()
    lanes.run(calls)
    return (time.perf_counter() - started) / (size * lanes.count)


def _bits(network: Network, probes: Probes, lanes: Lanes, size: int) -> Generator[None, None, str]:
    """A digest of the probes' results, the same wherever they stand in the batch; or `DEPENDS` if not.

    The first batch runs alone. oneDNN makes a kernel at the first call of a shape, and of two calls at once that made
    theirs, one in fifty got a kernel that rounds otherwise, for as long as the process lived.
    """
    seen: dict[int, set[bytes]] = {number: set() for number in range(len(probes.rows))}
    batches = probes.arranged(size)
    at_once = 1
    while arranged := list(islice(batches, at_once)):
        outputs = lanes.run([partial(network, *batch) for _, batch in arranged])
        for (numbers, _), (output, *_rest) in zip(arranged, outputs, strict=True):
            for position, number in numbers.items():
                seen[number].add(output[position].cpu().numpy().tobytes())
        yield
        at_once = lanes.count
    if any(len(results) > 1 for results in seen.values()):
        return DEPENDS
    return hashlib.sha256(b"".join(result for results in seen.values() for result in results)).hexdigest()[:12]
