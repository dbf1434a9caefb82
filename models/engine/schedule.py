"""The engine's scheduling policy: which samples run next. Plain Python, without tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

PROMOTE_S = 60.0  # each such period of waiting raises a job by one priority level
SHORT_SHARE = 0.02  # of every tick, reserved for the jobs with the least work left
FEW_JOBS = 3  # for each lane; up to so many share ticks freely, because larger batches make room sooner
FULL_HOUSE = 16  # jobs for each lane; the fewer there are, the more the order is that of arrival
OTHERS = 1 / 3  # of a lane's share, for other jobs than the first: shorter ticks make the slowest answers sooner


class Waiting(Protocol):
    """A sample as the schedule sees it; samples are compared by identity."""

    @property
    def priority(self) -> int: ...

    @property
    def group(self) -> str:
        """Samples of one group form one job, which takes turns with other jobs."""

    @property
    def evaluations_left(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its latents: samples of different shapes can't share a tick."""

    @property
    def row_cost(self) -> float:
        """Cost of one of its rows, relative to a row of the pack's own shape."""

    @property
    def rows_now(self) -> int:
        """Denoiser rows of its next evaluation."""

    @property
    def wants_classifier_now(self) -> bool:
        """Whether its next evaluation includes a classifier row."""

    def is_expired(self, now: float) -> bool:
        """Whether it has been cancelled or is overdue at the time `now`."""


Sample = TypeVar("Sample", bound=Waiting)


class Rows(NamedTuple):
    """Rows of a tick, by network."""

    denoiser: int
    classifier: int

    def plus(self, sample: Waiting) -> Rows:
        """With those of the sample's next evaluation."""
        return Rows(self.denoiser + sample.rows_now, self.classifier + sample.wants_classifier_now)

    def fit(self, room: Rows) -> bool:
        return self.denoiser <= room.denoiser and self.classifier <= room.classifier


@dataclass
class _Job(Generic[Sample]):
    """The unfinished samples of one group, in the order of their arrival."""

    since: float
    samples: list[Sample] = field(default_factory=list)

    @property
    def evaluations_left(self) -> int:
        """Evaluations left of the sample that has the most left."""
        return max(sample.evaluations_left for sample in self.samples)

    @property
    def work_left(self) -> int:
        """Evaluations left of all its samples together."""
        return sum(sample.evaluations_left for sample in self.samples)

    @property
    def priority(self) -> int:
        return self.samples[0].priority

    def level(self, now: float) -> int:
        """Its priority, which rises while it waits."""
        return self.priority + int((now - self.since) // PROMOTE_S)

    def evaluations_in_all(self, now: float, tick_s: float) -> float:
        """Projected total time in ticks, if it runs from now on."""
        return (now - self.since) / tick_s + self.evaluations_left


def _by_shortness(job: _Job[Sample]) -> tuple[float, float]:
    return -job.priority, job.work_left


@dataclass
class Schedule(Generic[Sample]):
    """The unfinished samples of one pack, and which of them the next tick moves.

    Every tick chooses anew among the samples at rest, that is those in no other tick. A sample that has begun may
    therefore pause for another: all it needs to continue is its state, which it keeps.

    Samples are ordered by projected total time (time waited so far plus evaluations left), longest first, to shorten
    the slowest answers: long jobs don't pause for short ones, which wait until they are as late. With few jobs under
    way time waited counts for more, so that the order is nearly that of arrival. A small share of every tick is
    reserved for the jobs with the least work left, so that a short one does not wait behind many long ones.

    Batches have few sizes, and are padded to them. So a tick that has its share also takes samples for which there is
    room in the padding: their rows cost nothing.

    A tick holds samples of one shape, that of the sample whose turn it is. A short one of another shape than the sample
    that is latest gets a tick of its own once the share reserved for short jobs suffices for all of that tick.

    Attributes:
        row_budget: denoiser rows that one tick may hold; classifier rows and rows of other shapes are counted by their
            time.
        least_rows: denoiser rows up to which a tick takes other jobs in any case: fewer would waste the device's time.
        classifier_cost: denoiser rows that take as long as one classifier row.
        lanes: ticks that run in parallel, each with an even share of the rows.
        few_rows: up to this many denoiser rows finish soonest in one tick over all lanes, if no tick is under way.
        tick_s: approximate seconds that a full tick takes.
        padded: to what rows of samples of one sample's shape are padded.
    """

    row_budget: int
    least_rows: float = math.inf
    classifier_cost: float = 0.0
    lanes: int = 1
    few_rows: int = 1
    tick_s: float = 0.1
    padded: Callable[[Rows, Sample], Rows] = lambda rows, sample: rows
    _jobs: dict[tuple[int, str], _Job[Sample]] = field(default_factory=dict)
    _moving: set[Sample] = field(default_factory=set)
    _short_rows: float = 0.0  # denoiser rows left of the share for short jobs

    def enqueue(self, sample: Sample, *, now: float) -> None:
        job = self._jobs.setdefault((sample.priority, sample.group), _Job(now))
        job.samples.append(sample)

    def __iter__(self) -> Iterator[Sample]:
        """The unfinished samples."""
        return iter(self._all())

    def __len__(self) -> int:
        """Number of unfinished samples."""
        return len(self._all())

    @property
    def is_idle(self) -> bool:
        """Whether there is no unfinished sample and no tick under way."""
        return not self._jobs and not self._moving

    @property
    def has_idle(self) -> bool:
        """Whether there is a sample with evaluations left that no tick is moving."""
        samples = (sample for job in self._jobs.values() for sample in job.samples)
        return any(sample.evaluations_left and sample not in self._moving for sample in samples)

    @property
    def next_done(self) -> Sample | None:
        """A sample at rest without evaluations left, `None` if there is none."""
        return next((sample for sample in self._all() if self._is_done(sample)), None)

    def take(self, *, now: float) -> list[Sample]:
        """Choose the samples that move next, at least one if any is at rest; their rows fit the padded budget.

        They are moving until `put_back`.
        """
        unfinished = [sample for sample in self._all() if sample.evaluations_left]
        costs = [self._cost(sample) for sample in unfinished]
        total, rows = sum(costs), sum(sample.rows_now for sample in unfinished)
        is_one_shape = len({sample.shape for sample in unfinished}) == 1
        together = not self._moving and is_one_shape and rows <= self.few_rows and total <= self.row_budget
        share = min(self.row_budget, total if together else math.ceil(total / self.lanes))
        are_many = len(self._jobs) > FEW_JOBS * self.lanes and not together
        of_others = min(share, max(self.least_rows, math.ceil(OTHERS * total / self.lanes))) if are_many else share
        chosen: dict[Sample, None] = {}  # an ordered set
        used = 0.0

        def fits(cost: float) -> bool:
            # The first sample always fits, even one of two rows in a budget that has shrunk to one: none may starve.
            return not chosen or used + cost <= self.row_budget

        tick_s = self.tick_s * min(1.0, len(self._jobs) / (FULL_HOUSE * self.lanes))

        def by_lateness(job: _Job[Sample]) -> tuple[float, float]:
            return -job.level(now), -job.evaluations_in_all(now, tick_s)

        self._short_rows = min(self._short_rows + SHORT_SHARE * of_others, max([self.row_budget, *costs]))
        late, short = (sorted(self._jobs.values(), key=order) for order in (by_lateness, _by_shortness))
        latest, shortest = next(self._at_rest(late), None), next(self._at_rest(short), None)
        if latest is None or shortest is None:
            return []
        is_short = self._cost(shortest) <= self._short_rows
        shape = shortest.shape if is_short else latest.shape
        for sample in self._at_rest(short, shape):
            cost = self._cost(sample)
            if not is_short or used >= of_others or cost > self._short_rows:
                break
            if fits(cost):
                self._short_rows -= cost
                chosen[sample], used = None, used + cost
        of_the_short = used
        for sample in self._at_rest(late, shape):
            is_first = (sample.priority, sample.group) == (latest.priority, latest.group)
            if used >= (share if is_first else of_others):
                break
            cost = self._cost(sample)
            if sample not in chosen and fits(cost):
                chosen[sample], used = None, used + cost
        if shape != latest.shape:
            self._short_rows -= used - of_the_short
        filled = [*chosen, *self._instead_of_padding(chosen, self._at_rest(late, shape))]
        self._moving.update(filled)
        return filled

    def take_done(self, most: int) -> list[Sample]:
        """Take up to `most` samples of one shape without evaluations left; they are moving until `put_back`."""
        done = [sample for sample in self._all() if self._is_done(sample)]
        chosen = [sample for sample in done if sample.shape == done[0].shape][:most]
        self._moving.update(chosen)
        return chosen

    def _instead_of_padding(self, chosen: Collection[Sample], waiting: Iterable[Sample]) -> Iterator[Sample]:
        """Those of the `waiting` samples for which the padded rows of the `chosen` ones have room."""
        rows = Rows(0, 0)
        for sample in chosen:
            rows = rows.plus(sample)
        room = self.padded(rows, sample)
        for sample in waiting:
            if rows.denoiser >= room.denoiser:
                return
            if sample not in chosen and rows.plus(sample).fit(room):
                rows = rows.plus(sample)
                yield sample

    def _at_rest(self, jobs: Iterable[_Job[Sample]], shape: tuple[int, ...] | None = None) -> Iterator[Sample]:
        """Samples of the jobs, in their order, that no tick is moving, of `shape` if given, by evaluations left."""
        for job in jobs:
            for sample in sorted(job.samples, key=lambda sample: sample.evaluations_left):
                if sample.evaluations_left and sample not in self._moving and shape in (None, sample.shape):
                    yield sample

    def _cost(self, sample: Sample) -> float:
        """Cost of the sample's next evaluation, in denoiser rows of the pack's own shape."""
        return sample.row_cost * (sample.rows_now + self.classifier_cost * sample.wants_classifier_now)

    def put_back(self, samples: Collection[Sample]) -> None:
        """Mark samples as at rest again: the tick that moved them is over."""
        self._moving.difference_update(samples)

    def expired(self, *, now: float) -> list[Sample]:
        """Samples at rest that are cancelled or overdue."""
        return [sample for sample in self._all() if sample not in self._moving and sample.is_expired(now)]

    def remove(self, sample: Sample) -> None:
        key = (sample.priority, sample.group)
        self._jobs[key].samples.remove(sample)
        if not self._jobs[key].samples:
            del self._jobs[key]

    def evict_all(self) -> list[Sample]:
        unfinished = self._all()
        self._jobs = {}
        return unfinished

    def _is_done(self, sample: Sample) -> bool:
        return not sample.evaluations_left and sample not in self._moving

    def _all(self) -> list[Sample]:
        return [sample for job in self._jobs.values() for sample in job.samples]


class Turns:
    """Deficit round robin, so that busy packs share the device's time evenly.

    Shreedhar & Varghese 1995, except that a tick is charged when it is over, since its cost is not known before. An
    idle pack accumulates no credit.

    Args:
        quantum_s: core seconds that a pack is credited each round.
    """

    def __init__(self, quantum_s: float = 0.1) -> None:
        self._quantum_s = quantum_s
        self._credit_s: dict[str, float] = {}  # in the order of turns

    def next(self, ready: Collection[str], *, busy: Collection[str]) -> str:
        """Choose one of the `ready` names (at least one): those of the `busy` ones that can start a tick."""
        self._credit_s = {name: credit for name, credit in self._credit_s.items() if name in busy}
        for name in busy:
            self._credit_s.setdefault(name, self._quantum_s)
        while True:
            name = next(name for name in self._credit_s if name in ready)
            credit = self._credit_s[name]
            if credit > 0:
                return name
            del self._credit_s[name]
            self._credit_s[name] = credit + self._quantum_s  # to the end of the round

    def charge(self, name: str, core_seconds: float) -> None:
        """Deduct the cost of a tick from the credit of the pack that `next` chose."""
        self._credit_s[name] -= core_seconds
