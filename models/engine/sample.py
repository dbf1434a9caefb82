"""A picture while it is drawn: its course, its state, and the handle that its submitter holds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.denoisers import Conditioning
from models.profiles import Profile
from models.samplers import CoefficientTable
from models.spec import Guidance, SampleSpec

Image = NDArray[np.uint8]
"""A finished picture: (H, W, C)."""
Preview = Callable[[int, Image], None]
"""Called with the evaluations done, and the picture so far."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a sample's networks are conditioned on, and what it starts from.

    Attributes:
        conditional, unconditional: of the denoiser's rows; the unconditional one is the guide's if there is one.
        condition: what the classifier steers to.
        init: latent (C,H,W) to start from.
        mask: (C or 1,H,W), 1 where `init` is redrawn.
    """

    conditional: Conditioning
    unconditional: Conditioning
    condition: Conditioning | None = None
    init: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Course:
    """Everything that decides a picture from its first evaluation to its last, worked out once.

    Attributes:
        spec: what to draw.
        profile: the conventions that `spec.profile` names.
        table: its sampler, from where the picture begins.
        guided: the evaluations at which guidance is on.
        inputs: what its networks are conditioned on.
        start: (a, s) of the first latent a·init + s·noise; `None` if it is noise alone, of the table's initial scale.
    """

    spec: SampleSpec
    profile: Profile
    table: CoefficientTable
    guided: range
    inputs: Inputs
    start: tuple[float, float] | None = None

    def __len__(self) -> int:
        """Network evaluations in all."""
        return len(self.table)

    @property
    def fork_position(self) -> int:
        """Evaluations that are the same at every scale: those before the guidance interval, except the last."""
        return min(self.guided.start, len(self) - 1)

    @property
    def prefix(self) -> SampleSpec:
        """What decides the evaluations before the guidance interval: the spec without its scales."""
        full = self.spec.guidance
        unscaled = Guidance(conditional=full.conditional, interval=full.interval, interval_unit=full.interval_unit)
        return replace(self.spec, guidance=unscaled)


@dataclass(eq=False)
class Promise:
    """What the engine and the submitter share of one picture: the engine writes it, a `Handle` reads it.

    It holds no tensor, so a caller that keeps its handle keeps no latent.
    """

    evaluations: int
    evaluations_done: int = 0
    telemetry: list[dict[str, float]] = field(default_factory=list)
    is_cancelled: bool = False
    future: Future[Image] = field(default_factory=Future)


class Handle:
    """What `Engine.submit` returns: one picture's future."""

    def __init__(self, promise: Promise) -> None:
        self._promise = promise

    @property
    def future(self) -> Future[Image]:
        return self._promise.future

    def result(self, timeout: float | None = None) -> Image:
        """Wait for the picture.

        Raises:
            SampleFailed: or one of its kinds.
            TimeoutError: not done within `timeout` seconds.
        """
        return self.future.result(timeout)

    def cancel(self) -> None:
        """Give the picture up: its rows are free when its tick is over."""
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
        """Network evaluations in all."""
        return self._promise.evaluations

    @property
    def telemetry(self) -> list[dict[str, float]]:
        """What guidance did in each evaluation so far, if the spec asks for it."""
        return list(self._promise.telemetry)


@dataclass(eq=False, kw_only=True)
class Sample:
    """One picture on its way.

    Attributes:
        course: what decides it.
        promise: what its submitter sees of it.
        deadline: on the engine's clock, in seconds, or `None`.
        on_preview: whom to show it every `preview_every` evaluations.
        state: (NUM_COLUMNS, C, H, W), what its sampler looks back on; `None` before its first tick.
        forks: samples that are the same as this one up to `fork_position`, and start from its state there.
    """

    course: Course
    promise: Promise
    deadline: float | None = None
    on_preview: Preview | None = None
    state: Tensor | None = None
    forks: list[Sample] = field(default_factory=list)

    @classmethod
    def on(cls, course: Course, *, deadline: float | None = None, on_preview: Preview | None = None) -> Sample:
        """A sample at the start of its course."""
        return cls(course=course, promise=Promise(len(course)), deadline=deadline, on_preview=on_preview)

    @property
    def priority(self) -> int:
        return self.course.spec.priority

    @property
    def group(self) -> str:
        return self.course.spec.group

    @property
    def position(self) -> int:
        """Its place in the coefficient table: the evaluations done."""
        return self.promise.evaluations_done

    @property
    def evaluations_left(self) -> int:
        return self.promise.evaluations - self.promise.evaluations_done

    @property
    def is_guided_now(self) -> bool:
        return self.position in self.course.guided

    @property
    def rows_now(self) -> int:
        """Denoiser rows of its next evaluation."""
        return len(self.course.spec.guidance.rows(active=self.is_guided_now))

    @property
    def wants_classifier_now(self) -> bool:
        return self.course.spec.guidance.wants_classifier(active=self.is_guided_now)

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

    def is_given_up(self, now: float) -> bool:
        """Whether it was cancelled, or its deadline has passed."""
        return self.is_cancelled or (self.deadline is not None and now >= self.deadline)

    @property
    def wants_preview_now(self) -> bool:
        every = self.course.spec.preview_every
        return self.on_preview is not None and every > 0 and self.position % every == 0

    def advance(self, state: Tensor, observed: dict[str, float] | None = None) -> None:
        """Take the state after one more evaluation, and what was observed in it."""
        self.state = state
        if observed is not None:
            self.promise.telemetry.append(observed)
        self.promise.evaluations_done += 1

    def take_forks(self) -> list[Sample]:
        """The forks, which this sample then no longer has."""
        forks, self.forks = self.forks, []
        return forks

    def fork(self) -> list[Sample]:
        """The forks, from where this sample is now; it no longer has them."""
        forks = self.take_forks()
        for fork in forks:
            fork.state = self.state
            fork.promise.evaluations_done = self.promise.evaluations_done
            fork.promise.telemetry = list(self.promise.telemetry)
        return forks

    def finish(self, image: Image) -> None:
        """Resolve its handle with the picture."""
        self.promise.future.set_result(image)

    def fail(self, error: BaseException) -> None:
        """Resolve its handle with an error."""
        self.promise.future.set_exception(error)


def share_prefixes(samples: Collection[Sample]) -> Iterator[Sample]:
    """The samples to start; every other one becomes a fork of one that does the same evaluations first."""
    first: dict[SampleSpec, Sample] = {}
    for sample in samples:
        trunk = first.setdefault(sample.course.prefix, sample) if sample.course.fork_position else sample
        if trunk is sample:
            yield sample
        else:
            trunk.forks.append(sample)
