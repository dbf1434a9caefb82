"""Rows through networks, in batches on the lanes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.adapters import RowExtras, given
from models.batching import picked
from models.caching import Kept, keeping, reusing
from models.calibration.packing import packed
from models.calibration.probes import Network, Shape, only, shape_of, stacked
from models.calibration.result import NetworkCalibration
from models.denoisers import Conditioning, Denoiser
from models.engine.evaluation import Evaluation
from models.lanes import CallRunner, first_call
from models.spec import Pixels, SampleSpec


@dataclass(frozen=True)
class Work:
    """Rows that one network evaluates.

    Attributes:
        network: evaluates them.
        calibration: of the network: which batch sizes it may use.
        x: (B,C,H,W), the network's input.
        timesteps: (B,).
        conditioning: stacked along the first axis.
        extras: what each row has for itself; empty if none has anything.
        reused: what the deep blocks found of each row and don't run for now; empty if they run.
        count: called with the rows and the padding of every batch.
    """

    network: Network
    calibration: NetworkCalibration
    x: Tensor
    timesteps: Tensor
    conditioning: Conditioning
    extras: Sequence[RowExtras | None]
    reused: Sequence[Kept]
    count: Callable[[int, int], None]

    def calls(self, batches: Sequence[int]) -> Iterator[Callable[[], tuple[Tensor, ...]]]:
        """Yield calls that evaluate the rows in `batches`, each padded to a size whose rows agree bitwise."""
        start = 0
        for count in batches:
            yield partial(self._padded, start, count)
            start += count

    def _padded(self, start: int, count: int) -> tuple[Tensor, ...]:
        own, padding = slice(start, start + count), self.calibration.padded(count) - count

        def part(tensor: Tensor) -> Tensor:
            rows = tensor if count == len(tensor) else tensor[own]
            return torch.cat([rows, rows[:1].expand(padding, *rows.shape[1:])]) if padding else rows

        conditioning = {name: part(tensor) for name, tensor in self.conditioning.items()}
        with given(self.extras[own]), reusing(self.reused[own], count + padding):
            outputs = self.network(part(self.x), part(self.timesteps), conditioning)
        self.count(count, padding)
        return tuple(output[:count] for output in outputs) if padding else outputs


class Evaluator:
    """Says how a denoiser's rows are evaluated, by the shapes of their latents and of their conditioning.

    The denoiser is measured with conditioning of one shape. Of others, such as that of longer prompts, it isn't known
    which batches give the same bits, so each of these rows runs alone. The first row of all shapes also runs while no
    other does, because kernels that are made on two threads at once may round differently.

    Attributes:
        example: conditioning of a row of the measured shape.
        measured: that shape.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        spec = SampleSpec(pack="", label=0, prompt="", init_image=Pixels.of(np.zeros((1, 1, 3), np.uint8)))
        self.example = denoiser.conditioning(spec)[0]
        self.measured = shape_of(self.example)
        self._known: set[tuple[tuple[int, ...], Shape, bool]] = {(denoiser.latent_shape, self.measured, False)}

    def __call__(
        self, calibration: NetworkCalibration, latents: tuple[int, ...], shape: Shape, *, reuses: bool, keeps: bool
    ) -> tuple[Network, NetworkCalibration]:
        """The network for rows with such latents and conditioning of `shape`, and the batches that they may be in.

        Args:
            calibration: of the denoiser, for such latents.
            latents: their shape.
            shape: that of the conditioning.
            reuses: whether deep blocks are left out. The layers that run were measured with them, on the same inputs.
            keeps: whether what deep blocks find is put out as well, after the network's own output.
        """
        network, key = only(self._denoiser.forward), (latents, shape, reuses)
        if keeps:
            network = partial(_keeping, network)
        if key not in self._known:
            network = partial(self._first, network, key)
        if shape != self.measured:
            calibration = calibration.alone()
        return network, calibration.reusing if reuses else calibration

    def _first(self, network: Network, key: tuple[tuple[int, ...], Shape, bool], *batch: Any) -> tuple[Tensor, ...]:
        with first_call(self._known, key):
            return network(*batch)


def _keeping(network: Network, *batch: Any) -> tuple[Tensor, ...]:
    with keeping() as kept:
        outputs = network(*batch)
    return (*outputs, *kept)


def work_of(
    network: Network,
    calibration: NetworkCalibration,
    evaluation: Evaluation,
    rows: Sequence[int],
    conditioning: Sequence[Conditioning],
    count: Callable[[int, int], None],
    extras: Sequence[RowExtras | None] = (),
    reused: Sequence[Kept] = (),
) -> Work:
    """Build the work for the evaluation's rows of the given ascending indices, each with what it has.

    `count` is called with the rows and the padding of every batch.
    """
    x = picked(evaluation.inputs, rows)
    scale, timesteps = (picked(evaluation.coefficients[name], rows) for name in ("input_scale", "timestep"))
    x = x * scale.view(-1, 1, 1, 1)
    return Work(network, calibration, x, timesteps, stacked(conditioning, x.device), extras, reused, count)


def evaluated(work: Sequence[Work], lanes: CallRunner, *, limit: int) -> list[Sequence[Tensor]]:
    """Run all networks in batches of at most `limit` rows; returns each network's outputs, each (B, …)."""
    plan = packed([(part.calibration, len(part.x)) for part in work], lanes=lanes.count, limit=limit)
    calls = [call for part, batches in zip(work, plan, strict=True) for call in part.calls(batches)]
    outputs = iter(lanes.run(calls))
    return [_joined([next(outputs) for _ in batches]) for batches in plan]


def _joined(batches: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
    if len(batches) == 1:
        return batches[0]
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]
