"""Who runs next: the engine's policy, in plain Python, without a tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

PROMOTE_S = 60.0  # a job that has waited so long counts as one priority higher
SHORT_SHARE = 0.05  # of every tick, for what is done soonest


class Waiting(Protocol):
    """What the schedule has to know of a sample, which it tells from others by identity."""

    @property
    def priority(self) -> int: ...

    @property
    def group(self) -> str:
        """Samples of one group are one job, and take turns with other jobs."""

    @property
    def evaluations_left(self) -> int: ...

    @property
    def rows_now(self) -> int:
        """Denoiser rows of its next evaluation."""

    @property
    def wants_classifier_now(self) -> bool:
        """Whether its next evaluation has a row of the classifier."""

    def is_given_up(self, now: float) -> bool:
        """Whether nobody waits for it any longer at the time `now`."""


Sample = TypeVar("Sample", bound=Waiting)


@dataclass
class _Job(Generic[Sample]):
    """The unfinished samples of one group, in the order of their arrival."""

    since: float
    samples: list[Sample] = field(default_factory=list)

    @property
    def evaluations_left(self) -> int:
        """Of the sample that has most left."""
        return max(sample.evaluations_left for sample in self.samples)

    @property
    def work_left(self) -> int:
        """Evaluations of all its samples."""
        return sum(sample.evaluations_left for sample in self.samples)

    @property
    def priority(self) -> int:
        return self.samples[0].priority

    def level(self, now: float) -> int:
        """Its priority, which rises while it waits."""
        return self.priority + int((now - self.since) // PROMOTE_S)

    def evaluations_in_all(self, now: float, tick_s: float) -> float:
        """How long, in ticks, it will have taken if it runs from now on."""
        return (now - self.since) / tick_s + self.evaluations_left


@dataclass
class Schedule(Generic[Sample]):
    """The unfinished samples of one pack, and which of them the next tick moves.

    Every tick chooses anew among the samples at rest, those in no other tick, so that a sample that has begun may pause
    for another: what it needs to go on is its state, which stays with it.

    Samples are ordered by projected total time (waited so far and evaluations left), longest first, so that the slowest
    answers come sooner: long jobs don't pause for short ones, which wait until they are as late. A small share of every
    tick is for the jobs that are done soonest, so that a short one does not wait behind many long ones.

    Attributes:
        row_budget: denoiser rows that one tick may hold, those of the classifier counted by their time.
        classifier_cost: denoiser rows that take as long as one row of the classifier.
        lanes: ticks that run side by side, with an even share of the rows each.
        few: denoiser rows that, while nothing is moving, are done soonest in one tick over all lanes.
        tick_s: seconds that a full tick takes, roughly.
    """

    row_budget: int
    classifier_cost: float = 0.0
    lanes: int = 1
    few: int = 1
    tick_s: float = 0.1
    _jobs: dict[tuple[int, str], _Job[Sample]] = field(default_factory=dict)
    _moving: set[Sample] = field(default_factory=set)
    _short_rows: float = 0.0  # that the share for short jobs has left

    def enqueue(self, sample: Sample, *, now: float) -> None:
        job = self._jobs.setdefault((sample.priority, sample.group), _Job(now))
        job.samples.append(sample)

    def __len__(self) -> int:
        """Unfinished samples."""
        return len(self._all())

    @property
    def is_idle(self) -> bool:
        """Whether no sample is unfinished and no tick under way."""
        return not self._jobs and not self._moving

    @property
    def has_rest(self) -> bool:
        """Whether there is a sample that no tick is moving."""
        return any(sample not in self._moving for job in self._jobs.values() for sample in job.samples)

    def take(self, *, now: float) -> list[Sample]:
        """The samples that move next, at least one where any is at rest; their rows fit the budget.

        They rest again when they are `put_back`.
        """
        everyone = self._all()
        costs = [self._cost(sample) for sample in everyone]
        total, rows = sum(costs), sum(sample.rows_now for sample in everyone)
        together = not self._moving and rows <= self.few and total <= self.row_budget
        share = min(self.row_budget, total if together else math.ceil(total / self.lanes))
        chosen: dict[Sample, None] = {}  # an ordered set
        used = 0.0

        def fits(cost: float) -> bool:
            # Two rows must fit even where the budget has shrunk to one: nothing may wait for ever.
            return not chosen or used + cost <= self.row_budget

        self._short_rows = min(self._short_rows + SHORT_SHARE * share, max([self.row_budget, *costs]))
        for sample in self._at_rest(lambda job: (-job.priority, job.work_left)):
            cost = self._cost(sample)
            if used >= share or cost > self._short_rows:
                break
            if fits(cost):
                self._short_rows -= cost
                chosen[sample], used = None, used + cost
        for sample in self._at_rest(lambda job: (-job.level(now), -job.evaluations_in_all(now, self.tick_s))):
            if used >= share:
                break
            cost = self._cost(sample)
            if sample not in chosen and fits(cost):
                chosen[sample], used = None, used + cost
        self._moving.update(chosen)
        return list(chosen)

    def _at_rest(self, turn: Callable[[_Job[Sample]], tuple[float, float]]) -> Iterator[Sample]:
        """Samples that no tick is moving, by their jobs' `turn`; of a job, first what is done soonest."""
        for job in sorted(self._jobs.values(), key=turn):
            for sample in sorted(job.samples, key=lambda one: one.evaluations_left):
                if sample not in self._moving:
                    yield sample

    def _cost(self, sample: Sample) -> float:
        """What the sample's next evaluation takes, in denoiser rows."""
        return sample.rows_now + self.classifier_cost * sample.wants_classifier_now

    def put_back(self, samples: Collection[Sample]) -> None:
        """The tick that moved them is over."""
        self._moving.difference_update(samples)

    def given_up(self, *, now: float) -> list[Sample]:
        """Cancelled and overdue samples, of those at rest."""
        return [sample for sample in self._all() if sample not in self._moving and sample.is_given_up(now)]

    def remove(self, sample: Sample) -> None:
        key = (sample.priority, sample.group)
        self._jobs[key].samples.remove(sample)
        if not self._jobs[key].samples:
            del self._jobs[key]

    def evict_all(self) -> list[Sample]:
        everyone = self._all()
        self._jobs = {}
        return everyone

    def _all(self) -> list[Sample]:
        return [sample for job in self._jobs.values() for sample in job.samples]


class Turns:
    """Whose tick is next, so that busy packs share the device's time evenly: deficit round robin.

    Shreedhar & Varghese 1995, charged after the fact: a tick's cost is known when it is over. A pack that is idle
    saves nothing up.

    Args:
        quantum_s: core seconds that a turn is worth.
    """

    def __init__(self, quantum_s: float = 0.1) -> None:
        self._quantum_s = quantum_s
        self._credit_s: dict[str, float] = {}  # in the order of turns

    def next(self, ready: Collection[str], *, busy: Collection[str]) -> str:
        """One of the `ready` names (at least one): those of the `busy` ones that have something at rest."""
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
        """Take the cost of a tick that `next` allowed."""
        self._credit_s[name] -= core_seconds
