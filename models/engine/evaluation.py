"""The inputs of the next evaluation of some samples, gathered once for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.adapters import RowExtras
from models.caching import Kept
from models.calibration.probes import Shape
from models.denoisers import Conditioning
from models.engine.sample import ConditionedRow, Sample
from models.samplers import CoefficientTable
from models.samplers.states import States
from models.samplers.table import COEFFICIENTS, DATA, LATENT, NOISE, NUM_COLUMNS
from models.samplers.update import State
from models.spec import Row


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
        states: where the samples' states are.
        places: their rows there.
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
    states: States
    places: Sequence[int]
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
        """Indices of the rows that can be evaluated together, without `repeats`."""
        groups: dict[Alike, list[int]] = {}
        for number, row in enumerate(self.rows):
            if number in self.repeats:
                continue
            alike = Alike(row.asked.guide, row.asked.shape, row.reused is not None)
            groups.setdefault(alike, []).append(number)
        return groups

    @cached_property
    def repeats(self) -> dict[int, int]:
        """Rows that equal an earlier one, which is evaluated for both: its number, by theirs.

        Pictures of one seed have one first latent. So the rows of their first evaluations differ only in what
        conditions them, if in anything: those of a sweep over scales are the same, and so are unconditional ones.
        """
        repeats: dict[int, int] = {}
        first: dict[tuple[Any, ...], list[int]] = {}
        starting = {number for number, sample in enumerate(self.samples) if sample.is_at_its_noise}
        for number, row in enumerate(self.rows) if starting else ():
            if row.sample not in starting or row.extras is not None:
                continue
            course = self.samples[row.sample].course
            table = course.table
            start = (course.spec.seed, course.spec.image_index, table.initial_scale, *table.numbers[0, :2].tolist())
            alike = first.setdefault((*start, row.asked.guide, row.asked.shape), [])
            equal = (other for other in alike if are_equal(self.rows[other].asked.conditioning, row.asked.conditioning))
            if (original := next(equal, None)) is None:
                alike.append(number)
            else:
                repeats[number] = original
        return repeats

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


def are_equal(one: Conditioning, other: Conditioning) -> bool:
    """Whether two rows' conditioning of the same shape is the same."""
    return all(torch.equal(one[name], other[name]) for name in one)


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
        states=states,
        places=own,
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
