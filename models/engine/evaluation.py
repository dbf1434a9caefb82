"""One evaluation of a batch of samples: gather the inputs, run the networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.adapters import RowExtras, given
from models.caching import Kept, keeping, reusing
from models.calibration.packing import packed
from models.calibration.probes import Network, Shape, only, shape_of, stacked
from models.calibration.result import NetworkCalibration
from models.denoisers import Conditioning, Denoiser
from models.engine.sample import Sample
from models.lanes import CallRunner, first_call
from models.samplers.table import COEFFICIENTS, DATA, LATENT, NOISE
from models.samplers.update import State
from models.spec import Pixels, Row, SampleSpec


class DenoiserRow(NamedTuple):
    """One row through a denoiser.

    Attributes:
        sample: index of its sample in the batch.
        conditioning: its conditioning.
        guide: the guide pack whose denoiser evaluates it, or `None` for the samples' own pack.
        kind: of its conditioning.
        extras: what it has for itself, besides the conditioning that the rows of a batch all have.
        reused: what its deep blocks found at an earlier evaluation and don't run for now; `None` if they run.
    """

    sample: int
    conditioning: Conditioning
    guide: str | None
    kind: Row
    extras: RowExtras | None = None
    reused: Kept | None = None


class Alike(NamedTuple):
    """What rows have in common that can be evaluated together.

    Attributes:
        guide: the guide pack, or `None` for the samples' own.
        shape: of the conditioning.
        reuses: whether deep blocks are left out.
    """

    guide: str | None
    shape: Shape
    reuses: bool


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The next evaluation of R samples, gathered once: the tensors have a row for each sample.

    Attributes:
        samples: R samples of one pack, whose latents have one shape.
        state: those of the samplers' columns that have weights, (R,C,H,W) each, before the evaluation.
        weights: (R, 2, NUM_COLUMNS), of the samplers; (R, 1, NUM_COLUMNS) if none has a latent to carry.
        adds_noise: indices of the samples that add noise, or keep it for the next evaluation.
        coefficients: (R,) each, by the names in `COEFFICIENTS`.
        rows: the denoisers' rows; those of one sample are adjacent, a conditional one first.
        first: index of each sample's first row, R of them.
        pairs: indices of the samples that have two rows.
        steered: indices of the samples that the classifier steers.
    """

    samples: Sequence[Sample]
    state: State
    weights: Tensor
    adds_noise: Sequence[int]
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
        return self.state[LATENT]

    @cached_property
    def sample_of_row(self) -> Tensor:
        """Index of each row's sample, (rows,)."""
        return torch.tensor([row.sample for row in self.rows], device=self.x.device)

    @cached_property
    def alike(self) -> dict[Alike, list[int]]:
        """Indices of the rows that can be evaluated together."""
        groups: dict[Alike, list[int]] = {}
        for number, row in enumerate(self.rows):
            alike = Alike(row.guide, shape_of(row.conditioning), row.reused is not None)
            groups.setdefault(alike, []).append(number)
        return groups

    @cached_property
    def keeping(self) -> set[int]:
        """Indices of the samples for which something is kept for their next evaluation."""
        return {number for number, sample in enumerate(self.samples) if sample.course.reuses(sample.position + 1)}

    def kept(self, found: Sequence[Sequence[Tensor]]) -> list[dict[Row, Kept]]:
        """What is kept for the next evaluation, by sample.

        Args:
            found: by deep blocks, (B,…) each, for each group of rows `alike`; nothing where they were left out.
        """
        kept: list[dict[Row, Kept]] = [{} for _ in self.samples]
        for numbers, tensors in zip(self.alike.values(), found, strict=True) if self.keeping else ():
            for place, number in enumerate(numbers):
                row = self.rows[number]
                if row.sample in self.keeping:
                    own = tuple(tensor[place].clone() for tensor in tensors)  # a view would keep the batch alive
                    kept[row.sample][row.kind] = own if row.reused is None else row.reused
        return kept

    def spread(self, coefficient: str) -> Tensor:
        """A coefficient for each denoiser row, (rows,1,1,1)."""
        return self.coefficients[coefficient][self.sample_of_row][:, None, None, None]


def gather(samples: Sequence[Sample], device: torch.device) -> Evaluation:
    """Collect the inputs of the next evaluation of `samples`, all of which have started."""
    places = [(sample.course.table, sample.position) for sample in samples]
    numbers = np.stack([table.numbers[position] for table, position in places])
    weights = numbers[:, len(COEFFICIENTS) :].reshape(len(places), 2, -1)
    is_weighted = (weights != 0).any(axis=0)
    carries = bool(is_weighted[1].any())
    columns = set(np.flatnonzero(is_weighted.any(axis=0)).tolist())
    on_device = torch.from_numpy(numbers).to(device)
    rows: list[DenoiserRow] = []
    first: list[int] = []
    pairs: list[int] = []
    for number, sample in enumerate(samples):
        guidance, inputs, own = sample.course.spec.guidance, sample.course.inputs, sample.extras_now
        wanted = guidance.rows(active=sample.is_guided_now)
        first.append(len(rows))
        for row in wanted:
            if row is Row.CONDITIONAL:
                rows.append(DenoiserRow(number, inputs.conditional, None, row, own, sample.kept.get(row)))
            else:
                guide = guidance.guide_pack
                extras = own.unconditional if own is not None and guide is None else None
                rows.append(DenoiserRow(number, inputs.unconditional, guide, row, extras, sample.kept.get(row)))
        if len(wanted) == 2:
            pairs.append(number)
    return Evaluation(
        samples=samples,
        state={column: _column(samples, column) for column in (columns | {LATENT}) - {DATA, NOISE}},
        weights=on_device[:, len(COEFFICIENTS) :].view(len(samples), 2, -1)[:, : 2 if carries else 1],
        adds_noise=[number for number, (table, position) in enumerate(places) if table.adds_noise[position]],
        coefficients=dict(zip(COEFFICIENTS, on_device.T, strict=False)),
        rows=rows,
        first=first,
        pairs=pairs,
        steered=[number for number, sample in enumerate(samples) if sample.wants_classifier_now],
    )


def _column(samples: Sequence[Sample], column: int) -> Tensor:
    """One column of the samples' states, (R,C,H,W): zeros where a sample has no such column, and no weight for it."""
    if column == LATENT:
        return torch.stack([sample.latent for sample in samples])
    without = torch.zeros_like(samples[0].latent)
    return torch.stack([sample.state.get(column, without) for sample in samples])


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
            rows = tensor[own]
            return torch.cat([rows, rows[:1].expand(padding, *rows.shape[1:])]) if padding else rows

        conditioning = {name: part(tensor) for name, tensor in self.conditioning.items()}
        with given(self.extras[own]), reusing(self.reused[own], count + padding):
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
    samples: Sequence[int],
    conditioning: Sequence[Conditioning],
    count: Callable[[int, int], None],
    extras: Sequence[RowExtras | None] = (),
    reused: Sequence[Kept] = (),
) -> Work:
    """Build the work for the samples at the given indices, which may repeat, each with what its row has.

    `count` is called with the rows and the padding of every batch.
    """
    scale, timesteps = evaluation.coefficients["input_scale"], evaluation.coefficients["timestep"]
    x = evaluation.x[samples] * scale[samples][:, None, None, None]
    return Work(network, calibration, x, timesteps[samples], stacked(conditioning, x.device), extras, reused, count)


def evaluated(work: Sequence[Work], lanes: CallRunner, *, limit: int) -> list[list[Tensor]]:
    """Run all networks in batches of at most `limit` rows; returns each network's outputs, each (B, …)."""
    plan = packed([(part.calibration, len(part.x)) for part in work], lanes=lanes.count, limit=limit)
    calls = [call for part, batches in zip(work, plan, strict=True) for call in part.calls(batches)]
    outputs = iter(lanes.run(calls))
    return [[torch.cat(parts) for parts in zip(*(next(outputs) for _ in batches), strict=True)] for batches in plan]
