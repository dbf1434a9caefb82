"""One evaluation of a batch of samples: gather the inputs, run the networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from operator import or_
from typing import Any, NamedTuple

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
from models.engine.sample import ConditionedRow, Sample
from models.lanes import CallRunner, first_call
from models.samplers import CoefficientTable
from models.samplers.states import States
from models.samplers.table import COEFFICIENTS, DATA, LATENT, NOISE, NUM_COLUMNS
from models.samplers.update import State
from models.spec import Pixels, Row, SampleSpec


class DenoiserRow(NamedTuple):
    """One row through a denoiser.

    Attributes:
        sample: index of its sample in the batch.
        asked: what it is conditioned on.
        extras: what it has for itself, besides the conditioning that the rows of a batch all have.
        reused: what its deep blocks found at an earlier evaluation and don't run for now; `None` if they run.
    """

    sample: int
    asked: ConditionedRow
    extras: RowExtras | None
    reused: Kept | None


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
    """The next evaluation of R samples, gathered once.

    Attributes:
        samples: R samples of one pack, whose latents have one shape.
        state: those of the samplers' columns that have weights, (R,C,H,W) each, before the evaluation.
        weights: (R, 2, NUM_COLUMNS), of the samplers; (R, 1, NUM_COLUMNS) if none has a latent to carry.
        adds_noise: indices of the samples that add noise, or keep it for the next evaluation.
        rows: the denoisers' rows: one of each sample, the conditional one if there is one, then those of `pairs`.
        pairs: indices of the samples that have a second, unconditional row.
        inputs: (rows,C,H,W), the latents of the rows' samples.
        coefficients: (rows,) each, by the names in `COEFFICIENTS`.
        steered: indices of the samples that the classifier steers.
    """

    samples: Sequence[Sample]
    state: State
    weights: Tensor
    adds_noise: Sequence[int]
    rows: Sequence[DenoiserRow]
    pairs: Sequence[int]
    inputs: Tensor
    coefficients: Mapping[str, Tensor]
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
    def alike(self) -> dict[Alike, list[int]]:
        """Indices of the rows that can be evaluated together."""
        groups: dict[Alike, list[int]] = {}
        for number, row in enumerate(self.rows):
            alike = Alike(row.asked.guide, row.asked.shape, row.reused is not None)
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
                    kept[row.sample][row.asked.kind] = own if row.reused is None else row.reused
        return kept


def gather(samples: Sequence[Sample], device: torch.device) -> Evaluation:
    """Collect the inputs of the next evaluation of `samples`, all of which have started."""
    first: list[DenoiserRow] = []
    second: list[DenoiserRow] = []
    places: list[tuple[CoefficientTable, int]] = []
    adds_noise: list[int] = []
    steered: list[int] = []
    for number, sample in enumerate(samples):
        course, position, kept = sample.course, sample.position, sample.kept
        places.append((course.table, position))
        extras = None if course.inputs.extras is None else sample.extras_now
        asked, *others = course.asked(position)
        first.append(DenoiserRow(number, asked, _of_row(extras, asked), kept.get(asked.kind)))
        for row in others:
            second.append(DenoiserRow(number, row, _of_row(extras, row), kept.get(row.kind)))
        if course.table.adds_noise[position]:
            adds_noise.append(number)
        if course.steers(position):
            steered.append(number)
    rows, pairs, count = first + second, [row.sample for row in second], len(samples)
    # By column, so that each is contiguous.
    of_rows = places + [places[number] for number in pairs]
    numbers = torch.from_numpy(np.stack([table.numbers[position] for table, position in of_rows], axis=1)).to(device)
    weights = numbers[len(COEFFICIENTS) :, :count].view(2, -1, count).permute(2, 0, 1)
    used = reduce(or_, (table.used[position] for table, position in places))
    columns = {column for column in range(NUM_COLUMNS) if used >> column & 1}
    columns.update(*(table.passed_on for table, _ in places))
    states, own = states_of(samples)
    inputs = states.read([LATENT], own + [own[number] for number in pairs])[LATENT]
    return Evaluation(
        samples=samples,
        state={LATENT: inputs[:count], **states.read(columns - {LATENT, DATA, NOISE}, own)},
        weights=weights if used >> NUM_COLUMNS else weights[:, :1],
        adds_noise=adds_noise,
        rows=rows,
        pairs=pairs,
        inputs=inputs,
        coefficients=dict(zip(COEFFICIENTS, numbers[: len(COEFFICIENTS)].unbind(), strict=True)),
        steered=steered,
    )


def states_of(samples: Sequence[Sample]) -> tuple[States, list[int]]:
    """Where the states of samples are that have started, and whose latents have one shape: all together, in rows."""
    places = [sample.place for sample in samples if sample.place is not None]
    return places[0].states, [place.row for place in places]


def _of_row(extras: RowExtras | None, row: ConditionedRow) -> RowExtras | None:
    """What a row has for itself, of what its sample has: a guide's has nothing."""
    if extras is None or row.kind is Row.CONDITIONAL:
        return extras
    return extras.unconditional if row.guide is None else None


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
        if len(batches) == 1 and self.calibration.padded(batches[0]) == batches[0]:
            yield self._whole
            return
        start = 0
        for count in batches:
            yield partial(self._padded, start, count)
            start += count

    def _whole(self) -> tuple[Tensor, ...]:
        with given(self.extras), reusing(self.reused, len(self.x)):
            outputs = self.network(self.x, self.timesteps, self.conditioning)
        self.count(len(self.x), 0)
        return outputs

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
