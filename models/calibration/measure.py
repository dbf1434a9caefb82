"""Measures which batch sizes reproduce the reference batch's rows, and how long each takes. None of it changes bits.

A network's kernels are chosen by the shape of its input, so a row's result may differ in its last bits from one batch
size to another. Every batch is padded to a size whose rows agree bitwise with the reference batch's, so a picture does
not depend on the other rows in its batch (docs/decisions/0003).
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
from torch import Tensor

from models.adapters import ControlNetwork
from models.caching import Kept, keeping, reusing
from models.calibration.cache import FileCalibrations, calibration_key
from models.calibration.networks import Networks, free_memory, load_networks
from models.calibration.probes import Probes, TensorProbes, only
from models.calibration.result import DEPENDS, BatchSize, Calibration, NetworkCalibration
from models.cpu_layers import FEWEST_ROWS
from models.denoisers import BatchedEncoder, Denoiser
from models.flop import flop_of
from models.lanes import CallRunner, Lanes, Layout, drop_traceback, ran_out_of_memory
from models.memory import peak_of
from models.pack import Pack

COMPILED_SIZES = (1, 2, 4, 8, 16, 32, 48)  # compiling takes about half a minute per size on a CPU
LONGEST_BATCH_S = 2.0  # longer batches are not tried: samples would wait too long for such a tick
HOPELESS = 8.0  # after n tries, a candidate 8/n times slower than the best is not tried again
REPEATS = 5

_Result = TypeVar("_Result")
_Candidate = TypeVar("_Candidate")
Steps = Generator[_Result | None, None, _Result]
"""Work in short steps. Between steps the caller may do other work, and use the results so far."""


def finished(steps: Generator[object, None, _Result]) -> _Result:
    """Take all steps, and return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _Result = end.value
            return result


def measuring(
    networks: Networks, probes: tuple[Probes, Probes | None], lanes: Lanes, known: Calibration | None = None
) -> Steps[Calibration]:
    """Measure a pack's networks on the lanes of its layout, which nothing else should use during a step.

    A step is a batch on every lane: up to `LONGEST_BATCH_S`, unless a single row takes longer. First each network's
    batch sizes are compared with its reference batch; those that agree may be used immediately. Then they are timed.

    Args:
        networks: the networks to measure.
        probes: their `probes()`; an argument because encoding prompts must not happen on every thread.
        lanes: the lanes to run on.
        known: calibration from an earlier process, whose times are reused. Bits are compared again in every process,
            because oneDNN creates its kernels anew.
    """
    denoiser, device, (denoiser_probes, classifier_probes) = networks.denoiser, networks.device, probes
    measured = {"denoiser": _Measured(only(denoiser.forward), denoiser_probes, lanes)}
    if networks.steering is not None and classifier_probes is not None:
        measured["classifier"] = _Measured(networks.steering.gradient, classifier_probes, lanes)
    if denoiser.has_autoencoder:
        latents = TensorProbes(partial(_latent, denoiser_probes.shape), device)
        measured["decoder"] = _Measured(lambda x: (denoiser.decode(x),), latents, lanes)
    calibration = networks.by_rule
    with Lanes(Layout(lanes=1, threads=1)) as aside:  # as prompts are encoded
        for encoder in networks.encoders:
            measured[encoder.name] = _Measured(
                partial(_states, encoder), TensorProbes(partial(_ids, encoder), device), aside
            )
        for name, network in measured.items():
            compared = yield from network.compared(calibration.of(name), _measured_of(known, name))
            calibration = calibration.having(name, compared)
            yield calibration
        for name, network in measured.items() if not known else ():
            timed = yield from network.timed(calibration.of(name))
            calibration = calibration.having(name, timed)
        if not known and denoiser.has_deep_blocks and calibration.denoiser.row_flop:
            yield None
            [counted] = lanes.run([partial(_without_deep_blocks, denoiser, denoiser_probes, calibration.denoiser)])
            calibration = calibration.having("denoiser", counted)
    return calibration


def _without_deep_blocks(denoiser: Denoiser, probes: Probes, full: NetworkCalibration) -> NetworkCalibration:
    """The denoiser's calibration with what is left of a row's FLOP without deep blocks, and what is kept of them."""
    count = min(FEWEST_ROWS, full.sizes[-1])  # as `timed` counts them
    batch = probes.batch(count)
    with keeping() as found:
        denoiser.forward(*batch)
    rows: list[Kept] = [tuple(tensor[row] for tensor in found) for row in range(count)]
    with reusing(rows, count):
        flop = flop_of(lambda: denoiser.forward(*batch))
    kept_bytes = sum(tensor.nbytes for tensor in rows[0])
    return replace(full, reused_share=flop / count / full.row_flop, kept_bytes=kept_bytes)


def measuring_control(control: ControlNetwork, probes: Probes, lanes: Lanes) -> Steps[NetworkCalibration]:
    """Measure a ControlNet of a pack as `measuring` does its networks; `probes` are those of its denoiser."""
    measured = _Measured(control.joined, probes, lanes)
    compared = yield from measured.compared(NetworkCalibration(), None)
    yield compared
    return (yield from measured.timed(compared))


def _measured_of(known: Calibration | None, name: str) -> NetworkCalibration | None:
    return known.of(name) if known and known.of(name).is_measured else None


def _latent(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _ids(encoder: BatchedEncoder, generator: torch.Generator) -> Tensor:
    return torch.randint(encoder.vocabulary, (encoder.max_length,), generator=generator)


@torch.inference_mode()
def _states(encoder: BatchedEncoder, ids: Tensor) -> tuple[Tensor]:
    """Everything that a text encoder puts out for tokens (B,T), in one float32 tensor (B,…)."""
    outputs = [
        tensor for value in encoder.output(ids).values() for tensor in (value if isinstance(value, tuple) else (value,))
    ]
    return (torch.cat([tensor.flatten(1).float() for tensor in outputs], dim=1),)


def _flop_and_bytes(call: Callable[[], object], *, compiled: bool) -> tuple[int, int]:
    flop: list[int] = []
    size = peak_of(lambda: flop.append(flop_of(call, compiled=compiled)), compiled=compiled)
    return flop[0], size


def calibrated(
    pack: Pack,
    device: torch.device,
    *,
    precision: str = "auto",
    encoder_precision: str = "auto",
    quantize: str | None = None,
    offloaded: bool = False,
    compiled: bool = False,
    again: bool = False,
) -> Calibration:
    """Measure a pack on this device; times may come from the user's cache folder.

    Args:
        pack: the pack to measure.
        device: the device to measure it on.
        precision: as for `load_networks`.
        encoder_precision: as for `load_networks`.
        quantize: as for `load_networks`.
        offloaded: as for `load_networks`.
        compiled: as for `load_networks`.
        again: ignore cached times.

    Raises:
        InvalidPack: as for `load_networks`.
    """
    cache = FileCalibrations()
    networks = load_networks(
        pack,
        device,
        precision=precision,
        encoder_precision=encoder_precision,
        quantize=quantize,
        offloaded=offloaded,
        compiled=compiled,
    )
    key = calibration_key(pack, device, networks.by_rule)
    with Lanes(networks.by_rule.layout) as lanes:
        known = None if again else cache.load(key)
        calibration = finished(measuring(networks, networks.probes(), lanes, known))
    if known is None:
        cache.save(key, calibration)
    if device.type != "cpu":
        free_memory()
    return calibration


def in_turns(candidates: Mapping[_Candidate, Callable[[], float]]) -> dict[_Candidate, float]:
    """Best of several tries per candidate; tries are interleaved, so that other load affects all candidates alike."""
    return finished(_in_turns(candidates))


def _in_turns(candidates: Mapping[_Candidate, Callable[[], float]]) -> Generator[None, None, dict[_Candidate, float]]:
    best = dict.fromkeys(candidates, math.inf)
    for number in range(1 + REPEATS):
        for candidate, measure in candidates.items():
            if number == 0 or best[candidate] < HOPELESS / number * min(best.values()):
                best[candidate] = min(best[candidate], measure())
                yield
    return best


@dataclass(frozen=True)
class _Measured:
    """One network, the probes to measure it with, and the lanes to run on."""

    network: Callable[..., tuple[Tensor, ...]]
    probes: Probes | TensorProbes
    lanes: CallRunner

    def compared(
        self, by_rule: NetworkCalibration, known: NetworkCalibration | None
    ) -> Generator[None, None, NetworkCalibration]:
        """Find the batch sizes that reproduce the reference batch's bits, with a first estimate of their times."""
        reference, compiled = by_rule.reference, by_rule.precision.compiled
        row_s = {size.rows: size.row_ms / 1000 for size in known.measured} if known else {}
        if not known:
            self.lanes.run([partial(self.network, *self.probes.batch(reference))])  # alone: see `_bits`
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
            except RuntimeError as error:
                if not ran_out_of_memory(error):
                    raise
                drop_traceback(error)
                free_memory()
                break  # larger batches would not fit either
            yield
        if reference not in bits:
            return by_rule
        measured = [BatchSize(rows=size, row_ms=1000 * row_s[size], bits=digest) for size, digest in bits.items()]
        return replace(
            by_rule,
            measured=tuple(measured),
            lanes=self.lanes.count,
            row_flop=(known or by_rule).row_flop,
            row_bytes=(known or by_rule).row_bytes,
            reused_share=(known or by_rule).reused_share,
            kept_bytes=(known or by_rule).kept_bytes,
        )

    def timed(self, compared: NetworkCalibration) -> Generator[None, None, NetworkCalibration]:
        """Add the best time of several tries per size, and the FLOP and memory per row."""
        rows = [size.rows for size in compared.measured]
        row_flop, row_bytes = compared.row_flop, 0
        if rows:
            counted = min(FEWEST_ROWS, rows[-1])  # fewer would be padded
            batch, compiled = self.probes.batch(counted), compared.precision.compiled
            call = partial(_flop_and_bytes, partial(self.network, *batch), compiled=compiled)
            [(flop, size)] = self.lanes.run([call])
            row_flop, row_bytes = flop // counted, size // counted
            yield
        row_s = {size.rows: size.row_ms / 1000 for size in compared.measured}
        if len(rows) > 1:
            try:
                row_s = yield from _in_turns({size: partial(self._row_s, size) for size in rows})
            except RuntimeError as error:  # ticks hold memory meanwhile; the first estimates have to do
                if not ran_out_of_memory(error):
                    raise
                drop_traceback(error)
                free_memory()
        measured = tuple(replace(size, row_ms=1000 * row_s[size.rows]) for size in compared.measured)
        return replace(compared, measured=measured, row_flop=row_flop, row_bytes=row_bytes)

    def _row_s(self, size: int) -> float:
        """Seconds of the device's time per row in a batch of `size`, while every lane runs one."""
        batch = self.probes.batch(size)
        calls = [lambda: self.network(*batch)[0].sum().item()] * self.lanes.count  # .item() waits for the device
        if self.probes.device.type != "cpu":
            self.lanes.run(calls)  # kernels are loaded and chosen at the first call
        started = time.perf_counter()
        self.lanes.run(calls)
        return (time.perf_counter() - started) / (size * self.lanes.count)

    def _bits(self, size: int) -> Generator[None, None, str]:
        """Digest of the probes' results if they are the same at every position in the batch, else `DEPENDS`.

        The first batch runs alone. oneDNN creates a kernel at the first call with a shape; when two calls did so at
        once, one in fifty got a kernel that rounds differently for as long as the process lives.
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
