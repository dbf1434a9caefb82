"""A picture in progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from models.adapters import RowExtras
from models.caching import Kept
from models.engine.sample.course import Course
from models.engine.sample.handle import Image, Promise
from models.samplers.states import Place
from models.spec import Row, SampleSpec

Preview = Callable[[int, Image], None]
"""Called with the number of evaluations done, and the picture so far."""


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
    def rows_now(self) -> int:
        """Denoiser rows of its next evaluation."""
        return len(self.course.asked(self.position))

    @property
    def extras_now(self) -> RowExtras | None:
        """What the conditional rows of its own denoiser have for themselves in its next evaluation."""
        extras = self.course.inputs.extras
        return None if extras is None else extras.during(self.position, len(self.course))

    @property
    def is_at_its_noise(self) -> bool:
        """Whether its next evaluation is of noise that only its seed decides, and runs all blocks."""
        course = self.course
        return self.position == 0 and course.inputs.init is None and course.spec.cache is None

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
