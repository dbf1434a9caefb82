"""A picture being drawn: its course, its state, and the handle that its submitter holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.adapters import RowExtras
from models.caching import Kept
from models.calibration.probes import Shape, shape_of
from models.denoisers import Conditioning
from models.networks.tokens import Readings
from models.profiles import Profile
from models.samplers import CoefficientTable
from models.samplers.states import Place
from models.spec import Guidance, Row, SampleSpec

Image = NDArray[np.uint8]
"""A finished picture: (H, W, C)."""
Preview = Callable[[int, Image], None]
"""Called with the number of evaluations done, and the picture so far."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The conditioning of a sample's networks, and the picture it starts from.

    Attributes:
        conditional, unconditional: conditioning of the denoiser's rows; the unconditional one is for the guide if there
            is one.
        condition: the classifier's target.
        init: latent (C,H,W) to start from.
        mask: (C or 1,H,W), 1 where `init` is redrawn.
        extras: what the conditional rows of its own denoiser have besides their conditioning.
        readings: how the denoiser's text encoders read the prompts.
        remarks: what of the prompts the networks do not read.
    """

    conditional: Conditioning
    unconditional: Conditioning
    condition: Conditioning | None = None
    init: Tensor | None = None
    mask: Tensor | None = None
    extras: RowExtras | None = None
    readings: Readings = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


class ConditionedRow(NamedTuple):
    """What a sample asks of a denoiser in an evaluation, once for each of its rows.

    Attributes:
        kind: of the conditioning.
        conditioning: what the denoiser gets.
        shape: of that.
        guide: the guide pack whose denoiser evaluates it, or `None` for the sample's own pack.
    """

    kind: Row
    conditioning: Conditioning
    shape: Shape
    guide: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Course:
    """Everything that determines a picture from its first evaluation to its last, computed once.

    Attributes:
        spec: what to draw.
        profile: the conventions that `spec.profile` names.
        table: the sampler's coefficients, starting at the picture's first evaluation.
        guided: the evaluations at which guidance is on.
        inputs: the conditioning of its networks.
        shape: (C, H, W) of its latents.
        row_cost: cost of one of its rows, relative to a row of the pack's own size.
        start: (a, s) of the first latent a·init + s·noise; `None` if it is pure noise of the table's initial scale.
    """

    spec: SampleSpec
    profile: Profile
    table: CoefficientTable
    guided: range
    inputs: Inputs
    shape: tuple[int, int, int]
    row_cost: float = 1.0
    start: tuple[float, float] | None = None

    def __len__(self) -> int:
        """Total number of network evaluations."""
        return len(self.table)

    @property
    def fork_position(self) -> int:
        """Number of leading evaluations that are the same at every scale: those before the guidance interval.

        At least the last evaluation is always left to each sample.
        """
        return min(self.guided.start, len(self) - 1)

    def asked(self, position: int) -> tuple[ConditionedRow, ...]:
        """The denoiser rows of the evaluation at `position`, a conditional one first."""
        return self._guided_rows if position in self.guided else self._unguided_rows

    @cached_property
    def _guided_rows(self) -> tuple[ConditionedRow, ...]:
        return tuple(map(self._conditioned, self.spec.guidance.rows(active=True)))

    @cached_property
    def _unguided_rows(self) -> tuple[ConditionedRow, ...]:
        return tuple(map(self._conditioned, self.spec.guidance.rows(active=False)))

    def _conditioned(self, kind: Row) -> ConditionedRow:
        is_conditional = kind is Row.CONDITIONAL
        conditioning = self.inputs.conditional if is_conditional else self.inputs.unconditional
        guide = None if is_conditional else self.spec.guidance.guide_pack
        return ConditionedRow(kind, conditioning, shape_of(conditioning), guide)

    def steers(self, position: int) -> bool:
        """Whether the evaluation at `position` has a classifier row."""
        return self.spec.guidance.wants_classifier(active=position in self.guided)

    def reuses(self, position: int) -> bool:
        """Whether the evaluation at `position` reuses what deep blocks found before, for the rows that have it."""
        cache = self.spec.cache
        return cache is not None and position % cache.every != 0 and position < round(cache.until * len(self))

    @property
    def prefix(self) -> SampleSpec:
        """The spec without its scales, which determines the evaluations before the guidance interval."""
        full = self.spec.guidance
        unscaled = Guidance(conditional=full.conditional, interval=full.interval, interval_unit=full.interval_unit)
        return replace(self.spec, guidance=unscaled)


@dataclass(eq=False)
class Promise:
    """A picture's state shared between engine and submitter: the engine writes it, a `Handle` reads it.

    It holds no tensor, so a caller that keeps its handle keeps no latent alive.
    """

    evaluations: int
    guided: range
    remarks: tuple[str, ...] = ()
    evaluations_done: int = 0
    evaluated_at: list[float] = field(default_factory=list)
    telemetry: list[dict[str, float]] = field(default_factory=list)
    is_cancelled: bool = False
    future: Future[Image] = field(default_factory=Future)


class Handle:
    """The future of one picture, as returned by `Engine.submit`."""

    def __init__(self, promise: Promise) -> None:
        self._promise = promise

    @property
    def future(self) -> Future[Image]:
        return self._promise.future

    def result(self, timeout: float | None = None) -> Image:
        """Wait for the picture.

        Raises:
            SampleFailed: or a subclass.
            TimeoutError: not done within `timeout` seconds.
        """
        return self.future.result(timeout)

    def cancel(self) -> None:
        """Abandon the picture; its rows become free when its current tick ends."""
        self._promise.is_cancelled = True

    @property
    def is_done(self) -> bool:
        return self.future.done()

    @property
    def evaluations_done(self) -> int:
        """Network evaluations so far."""
        return self._promise.evaluations_done

    @property
    def evaluations(self) -> int:
        """Total number of network evaluations."""
        return self._promise.evaluations

    @property
    def evaluated_at(self) -> list[float]:
        """When each evaluation so far was done, on `time.monotonic`."""
        return list(self._promise.evaluated_at)

    @property
    def guided(self) -> range:
        """The evaluations at which guidance is on."""
        return self._promise.guided

    @property
    def remarks(self) -> tuple[str, ...]:
        """What of the spec's prompts the networks do not read, in sentences."""
        return self._promise.remarks

    @property
    def telemetry(self) -> list[dict[str, float]]:
        """Effect of guidance in each evaluation so far, if the spec requests telemetry."""
        return list(self._promise.telemetry)


@dataclass(eq=False, kw_only=True)
class Sample:
    """One picture in progress.

    Attributes:
        course: everything that determines the picture.
        promise: the part of it that its submitter sees.
        deadline: on the engine's clock, in seconds, or `None`.
        on_preview: called every `preview_every` evaluations.
        place: of its state, that is of the latents and predictions that its sampler needs; `None` before its first
            tick.
        kept: what deep blocks found for its rows, if its next evaluation reuses that.
        forks: samples that equal this one up to `fork_position`, and continue from its state there.
    """

    course: Course
    promise: Promise
    deadline: float | None = None
    on_preview: Preview | None = None
    place: Place | None = None
    kept: Mapping[Row, Kept] = field(default_factory=dict)
    forks: list[Sample] = field(default_factory=list)

    @classmethod
    def begin(cls, course: Course, *, deadline: float | None = None, on_preview: Preview | None = None) -> Sample:
        """A sample at the start of its course."""
        promise = Promise(len(course), course.guided, course.inputs.remarks)
        return cls(course=course, promise=promise, deadline=deadline, on_preview=on_preview)

    @property
    def priority(self) -> int:
        return self.course.spec.priority

    @property
    def group(self) -> str:
        return self.course.spec.group

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.course.shape

    @property
    def row_cost(self) -> float:
        return self.course.row_cost

    @property
    def position(self) -> int:
        """Its row in the coefficient table: the number of evaluations done."""
        return self.promise.evaluations_done

    @property
    def evaluations_left(self) -> int:
        return self.promise.evaluations - self.promise.evaluations_done

    @property
    def is_guided_now(self) -> bool:
        return self.position in self.course.guided

    @property
    def asked_now(self) -> tuple[ConditionedRow, ...]:
        """The denoiser rows of its next evaluation, a conditional one first."""
        return self.course.asked(self.position)

    @property
    def rows_now(self) -> int:
        """Number of those rows."""
        return len(self.asked_now)

    @property
    def extras_now(self) -> RowExtras | None:
        """What the conditional rows of its own denoiser have for themselves in its next evaluation."""
        extras = self.course.inputs.extras
        return None if extras is None else extras.during(self.position, len(self.course))

    @property
    def wants_classifier_now(self) -> bool:
        return self.course.steers(self.position)

    @property
    def is_done(self) -> bool:
        """Whether every evaluation is done."""
        return self.evaluations_left <= 0

    @property
    def is_over(self) -> bool:
        """Whether its handle has been resolved."""
        return self.promise.future.done()

    @property
    def is_cancelled(self) -> bool:
        return self.promise.is_cancelled

    def is_expired(self, now: float) -> bool:
        """Whether it was cancelled, or its deadline has passed."""
        return self.is_cancelled or (self.deadline is not None and now >= self.deadline)

    @property
    def wants_preview_now(self) -> bool:
        every = self.course.spec.preview_every
        return self.on_preview is not None and every > 0 and self.position % every == 0

    def advance(self, telemetry: dict[str, float] | None, kept: Mapping[Row, Kept]) -> None:
        """Count an evaluation whose result is written, and note its telemetry and what is kept for the next."""
        self.kept = kept
        if telemetry is not None:
            self.promise.telemetry.append(telemetry)
        self.promise.evaluated_at.append(time.monotonic())
        self.promise.evaluations_done += 1

    def take_forks(self) -> list[Sample]:
        """Remove and return the forks."""
        forks, self.forks = self.forks, []
        return forks

    def fork(self) -> list[Sample]:
        """Remove and return the forks, moved to this sample's current state."""
        forks = self.take_forks()
        for fork in forks:
            fork.place, fork.kept = None if self.place is None else self.place.copied(), self.kept
            fork.promise.evaluations_done = self.promise.evaluations_done
            fork.promise.evaluated_at = list(self.promise.evaluated_at)
            fork.promise.telemetry = list(self.promise.telemetry)
        return forks

    def finish(self, image: Image) -> None:
        """Resolve its handle with the picture."""
        self.promise.future.set_result(image)

    def fail(self, error: BaseException) -> None:
        """Resolve its handle with an error."""
        self.promise.future.set_exception(error)


def share_prefixes(samples: Collection[Sample]) -> Iterator[Sample]:
    """Yield the samples to start; make each other one a fork of a sample that shares its first evaluations."""
    first: dict[SampleSpec, Sample] = {}
    for sample in samples:
        trunk = first.setdefault(sample.course.prefix, sample) if sample.course.fork_position else sample
        if trunk is sample:
            yield sample
        else:
            trunk.forks.append(sample)
