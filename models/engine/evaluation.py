"""One evaluation of a batch of samples: gather the inputs, run the networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.calibration.packing import packed
from models.calibration.probes import Network, Shape, only, shape_of, stacked
from models.calibration.result import NetworkCalibration
from models.denoisers import Conditioning, Denoiser
from models.engine.sample import Sample
from models.lanes import CallRunner, first_call
from models.samplers.table import COEFFICIENTS
from models.spec import Pixels, Row, SampleSpec


class DenoiserRow(NamedTuple):
    """One row through a denoiser.

    Attributes:
        sample: index of its sample in the batch.
        conditioning: its conditioning.
        guide: the guide pack whose denoiser evaluates it, or `None` for the samples' own pack.
    """

    sample: int
    conditioning: Conditioning
    guide: str | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The next evaluation of R samples, gathered once: the tensors have a row for each sample.

    Attributes:
        samples: R samples of one pack, whose latents have one shape.
        state: (R, NUM_COLUMNS, C, H, W), before the evaluation.
        weights: (R, 2, NUM_COLUMNS), of the samplers.
        coefficients: (R,) each, by the names in `COEFFICIENTS`.
        rows: the denoisers' rows; those of one sample are adjacent, a conditional one first.
        first: index of each sample's first row, R of them.
        pairs: indices of the samples that have two rows.
        steered: indices of the samples that the classifier steers.
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
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every sample's latents."""
        return self.samples[0].shape

    @property
    def x(self) -> Tensor:
        """(R,C,H,W), the latents."""
        return self.state[:, 0]

    @property
    def alike(self) -> dict[tuple[str | None, Shape], list[int]]:
        """Indices of the rows that can be evaluated together, by guide and shape of the conditioning."""
        groups: dict[tuple[str | None, Shape], list[int]] = {}
        for number, row in enumerate(self.rows):
            groups.setdefault((row.guide, shape_of(row.conditioning)), []).append(number)
        return groups

    def spread(self, coefficient: str) -> Tensor:
        """A coefficient for each denoiser row, (rows,1,1,1)."""
        return self.coefficients[coefficient][[row.sample for row in self.rows]][:, None, None, None]


def gather(samples: Sequence[Sample], device: torch.device) -> Evaluation:
    """Collect the inputs of the next evaluation of `samples`, all of which have started."""
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
        network: evaluates them.
        calibration: of the network: which batch sizes it may use.
        x: (B,C,H,W), the network's input.
        timesteps: (B,).
        conditioning: stacked along the first axis.
        count: called with the rows and the padding of every batch.
    """

    network: Network
    calibration: NetworkCalibration
    x: Tensor
    timesteps: Tensor
    conditioning: Conditioning
    count: Callable[[int, int], None]

    def calls(self, batches: Sequence[int]) -> Iterator[Callable[[], tuple[Tensor, ...]]]:
        """Yield calls that evaluate the rows in `batches`, each padded to a size whose rows agree bitwise."""
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
        outputs = self.network(part(self.x), part(self.timesteps), conditioning)
        self.count(count, padding)
        return tuple(output[:count] for output in outputs)


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
        self._known: set[tuple[tuple[int, ...], Shape]] = {(denoiser.latent_shape, self.measured)}

    def __call__(
        self, calibration: NetworkCalibration, latents: tuple[int, ...], shape: Shape
    ) -> tuple[Network, NetworkCalibration]:
        """The network for rows with such latents and conditioning of `shape`, and the batches that they may be in."""
        network = only(self._denoiser.forward)
        known = network if (latents, shape) in self._known else partial(self._first, network, (latents, shape))
        return known, calibration if shape == self.measured else calibration.alone()

    def _first(self, network: Network, shapes: tuple[tuple[int, ...], Shape], *batch: Any) -> tuple[Tensor, ...]:
        with first_call(self._known, shapes):
            return network(*batch)


def work_of(
    network: Network,
    calibration: NetworkCalibration,
    evaluation: Evaluation,
    samples: Sequence[int],
    conditioning: Sequence[Conditioning],
    count: Callable[[int, int], None],
) -> Work:
    """Build the work for the samples at the given indices, which may repeat, each with its conditioning.

    `count` is called with the rows and the padding of every batch.
    """
    scale, timesteps = evaluation.coefficients["input_scale"], evaluation.coefficients["timestep"]
    x = evaluation.x[samples] * scale[samples][:, None, None, None]
    return Work(network, calibration, x, timesteps[samples], stacked(conditioning, x.device), count)


def evaluated(work: Sequence[Work], lanes: CallRunner, *, limit: int) -> list[list[Tensor]]:
    """Run all networks in batches of at most `limit` rows; returns each network's outputs, each (B, …)."""
    plan = packed([(part.calibration, len(part.x)) for part in work], lanes=lanes.count, limit=limit)
    calls = [call for part, batches in zip(work, plan, strict=True) for call in part.calls(batches)]
    outputs = iter(lanes.run(calls))
    return [[torch.cat(parts) for parts in zip(*(next(outputs) for _ in batches), strict=True)] for batches in plan]
