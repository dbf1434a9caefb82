"""One evaluation of a batch of samples: what is gathered for it, and what the networks give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.calibration.probes import Network, stacked
from models.calibration.result import NetworkCalibration
from models.denoisers import Conditioning
from models.engine.packing import packed
from models.engine.sample import Sample
from models.lanes import Runs
from models.samplers.table import COEFFICIENTS
from models.spec import Row


class DenoiserRow(NamedTuple):
    """One row through a denoiser.

    Attributes:
        sample: the number of its sample in the batch.
        conditioning: what it is conditioned on.
        guide: the pack whose denoiser it is for, or `None` for the samples' own.
    """

    sample: int
    conditioning: Conditioning
    guide: str | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The next evaluation of R samples, gathered once: the tensors have a row for each sample.

    Attributes:
        samples: R of them, of one pack.
        state: (R, NUM_COLUMNS, C, H, W), before it.
        weights: (R, 2, NUM_COLUMNS), of the samplers.
        coefficients: (R,) each, by the names in `COEFFICIENTS`.
        rows: the denoisers' rows, those of one sample side by side, a conditional one first.
        first: the number of each sample's first row, R of them.
        pairs: samples that have two rows.
        steered: samples that the classifier steers.
    """

    samples: Sequence[Sample]
    state: Tensor
    weights: Tensor
    coefficients: dict[str, Tensor]
    rows: Sequence[DenoiserRow]
    first: Sequence[int]
    pairs: Sequence[int]
    steered: Sequence[int]

    @property
    def x(self) -> Tensor:
        """(R,C,H,W), the latents."""
        return self.state[:, 0]

    def spread(self, coefficient: str) -> Tensor:
        """A coefficient by denoiser row, (rows,1,1,1)."""
        return self.coefficients[coefficient][[row.sample for row in self.rows]][:, None, None, None]


def gather(samples: Sequence[Sample], device: torch.device) -> Evaluation:
    """Collect what the next evaluation of `samples`, all of them begun, needs."""
    coefficients = np.stack([sample.course.table.coefficients[sample.position] for sample in samples], axis=1)
    weights = np.stack([sample.course.table.weights[sample.position] for sample in samples])
    rows: list[DenoiserRow] = []
    first: list[int] = []
    pairs: list[int] = []
    for number, sample in enumerate(samples):
        guidance, inputs = sample.course.spec.guidance, sample.course.inputs
        wanted = guidance.rows(active=sample.is_guided_now)
        first.append(len(rows))
        for row in wanted:
            if row is Row.CONDITIONAL:
                rows.append(DenoiserRow(number, inputs.conditional, None))
            else:
                rows.append(DenoiserRow(number, inputs.unconditional, guidance.guide_pack))
        if len(wanted) == 2:
            pairs.append(number)
    return Evaluation(
        samples=samples,
        state=torch.stack([sample.state for sample in samples if sample.state is not None]),
        weights=torch.from_numpy(weights).to(device, torch.float32),
        coefficients=dict(zip(COEFFICIENTS, torch.from_numpy(coefficients).to(device), strict=True)),
        rows=rows,
        first=first,
        pairs=pairs,
        steered=[number for number, sample in enumerate(samples) if sample.wants_classifier_now],
    )


@dataclass(frozen=True)
class Work:
    """Rows that one network evaluates.

    Attributes:
        network: takes them.
        calibration: says which batches it may take.
        x: (B,C,H,W), the network's input.
        timesteps: (B,).
        conditioning: of all of them.
    """

    network: Network
    calibration: NetworkCalibration
    x: Tensor
    timesteps: Tensor
    conditioning: Conditioning

    def calls(self, batches: Sequence[int]) -> Iterator[Callable[[], tuple[Tensor, ...]]]:
        """Calls that evaluate them in batches of so many rows, padded to sizes whose rows agree bitwise."""
        start = 0
        for count in batches:
            yield partial(self._padded, start, count)
            start += count

    def _padded(self, start: int, count: int) -> tuple[Tensor, ...]:
        padding = self.calibration.padded(count) - count

        def part(tensor: Tensor) -> Tensor:
            own = tensor[start : start + count]
            return torch.cat([own, own[:1].expand(padding, *own.shape[1:])]) if padding else own

        conditioning = {name: part(tensor) for name, tensor in self.conditioning.items()}
        return tuple(output[:count] for output in self.network(part(self.x), part(self.timesteps), conditioning))


def work_of(
    network: Network,
    calibration: NetworkCalibration,
    evaluation: Evaluation,
    samples: Sequence[int],
    conditioning: Sequence[Conditioning],
) -> Work:
    """The rows of the samples of these numbers, which may repeat, each with its conditioning."""
    scale, timesteps = evaluation.coefficients["input_scale"], evaluation.coefficients["timestep"]
    x = evaluation.x[samples] * scale[samples][:, None, None, None]
    return Work(network, calibration, x, timesteps[samples], stacked(conditioning, x.device))


def evaluated(work: Sequence[Work], lanes: Runs, *, limit: int) -> list[list[Tensor]]:
    """The outputs of all networks, each (B, …); no batch has more rows than `limit`."""
    plan = packed([(one.calibration, len(one.x)) for one in work], lanes=lanes.count, limit=limit)
    calls = [call for one, batches in zip(work, plan, strict=True) for call in one.calls(batches)]
    outputs = iter(lanes.run(calls))
    return [[torch.cat(parts) for parts in zip(*(next(outputs) for _ in batches), strict=True)] for batches in plan]
