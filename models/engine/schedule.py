"""Who runs next: the engine's policy, in plain Python, without a tensor."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from models.spec import Guidance, SampleSpec

PROMOTE_S = 60.0  # a job that has waited so long counts as one priority higher


@dataclass(eq=False)
class Sample:
    """One picture on its way.

    Attributes:
        num_positions: network evaluations in all.
        guided: the positions at which guidance is on.
        inputs: what its networks are told; opaque here.
        position: evaluations done.
        deadline: on the engine's clock, in seconds, or `None`.
        state: what its sampler looks back on; opaque here. `None` before its first tick.
        handle: whom to answer, until that is done; opaque here.
        trace: what guidance did, evaluation by evaluation, where the spec asks for it.
        forks: samples that are the same as this one up to `fork_position`, and start from its state there.
    """

    spec: SampleSpec
    num_positions: int
    handle: Any
    guided: range = range(1_000_000)
    inputs: Any = None
    deadline: float | None = None
    position: int = 0
    state: Any = None
    cancelled: bool = False
    trace: list[dict[str, float]] = field(default_factory=list)
    forks: list[Sample] = field(default_factory=list)

    @property
    def fork_position(self) -> int:
        """Evaluations that are the same whatever the scales: those before the guidance interval, but for the last."""
        return min(self.guided.start, self.num_positions - 1)

    @property
    def prefix(self) -> SampleSpec:
        """What decides the evaluations before the guidance interval: the spec without its scales."""
        full = self.spec.guidance
        unscaled = Guidance(conditional=full.conditional, interval=full.interval, interval_unit=full.interval_unit)
        return replace(self.spec, guidance=unscaled)

    def take_forks(self) -> list[Sample]:
        """The forks, which are then nobody's."""
        forks, self.forks = self.forks, []
        return forks

    def take_handle(self) -> Any:
        """The handle of a sample that is over, and keeps nothing large: whoever has the handle has the sample."""
        handle, self.handle = self.handle, None
        self.state = self.inputs = None
        return handle

    @property
    def guided_now(self) -> bool:
        return self.position in self.guided

    @property
    def rows_now(self) -> int:
        """Denoiser rows of its next evaluation."""
        return len(self.spec.guidance.rows(active=self.guided_now))

    @property
    def wants_classifier_now(self) -> bool:
        return self.spec.guidance.wants_classifier(active=self.guided_now)

    @property
    def is_done(self) -> bool:
        return self.position >= self.num_positions


@dataclass
class _Job:
    """The unfinished samples of one group, in the order they came."""

    since: float
    samples: list[Sample] = field(default_factory=list)

    def turn(self, now: float, tick_s: float) -> tuple[float, float]:
        """Sorts first what runs first: by priority, then by how late the job will be even if it runs from now on.

        Lateness is measured in fourth roots of the job's own length. In its length itself (the *stretch* of Bender,
        Chakrabarti & Muthukrishnan 1998) a long job would wait for ever longer while short ones come; in seconds, a
        short one would wait as long as everyone (docs/performance.md has both ends).
        """
        waited = now - self.since
        level = self.samples[0].spec.priority + waited // PROMOTE_S
        left = max(sample.num_positions - sample.position for sample in self.samples)
        length = max(sample.num_positions for sample in self.samples)
        return -level, -(waited / tick_s + left) / length**0.25


@dataclass
class Schedule:
    """The unfinished samples of one pack, and which of them the next tick moves.

    Every tick chooses anew among the samples at rest, those in no other tick, so that a sample that has begun may pause
    for another: what it needs to go on is its state, which stays with it.

    Attributes:
        row_budget: denoiser rows that one tick may hold.
        lanes: ticks that run side by side, with an even share of the rows each.
        few: rows that, while nothing is moving, are done soonest in one tick over all lanes.
        tick_s: seconds that a full tick takes, roughly.
    """

    row_budget: int
    lanes: int = 1
    few: int = 1
    tick_s: float = 0.1
    _jobs: dict[tuple[int, str], _Job] = field(default_factory=dict)
    _moving: set[Sample] = field(default_factory=set)

    def enqueue(self, sample: Sample, *, now: float) -> None:
        job = self._jobs.setdefault((sample.spec.priority, sample.spec.group), _Job(now))
        job.samples.append(sample)

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

        They rest again when they are `put_back`. The classifier runs once a tick, and few rows cost it nearly as much
        as many, so the first sample in turn decides whether samples that want it or those that don't fill the rest
        first.
        """
        jobs = sorted(self._jobs.values(), key=lambda job: job.turn(now, self.tick_s))
        in_turn = [
            sample
            for job in jobs
            for sample in sorted(job.samples, key=lambda one: one.num_positions - one.position)
            if sample not in self._moving
        ]
        if not in_turn:
            return []
        total = sum(sample.rows_now for sample in self._all())
        together = not self._moving and total <= min(self.few, self.row_budget)
        budget = min(self.row_budget, total if together else math.ceil(total / self.lanes))
        kind = in_turn[0].wants_classifier_now
        chosen: list[Sample] = []
        used = 0
        for sample in sorted(in_turn, key=lambda one: one.wants_classifier_now is not kind):
            # Two rows must fit even where the budget has shrunk to one: nothing may wait for ever.
            if not chosen or used + sample.rows_now <= budget:
                chosen.append(sample)
                used += sample.rows_now
            if used >= budget:
                break
        self._moving.update(chosen)
        return chosen

    def put_back(self, samples: Collection[Sample]) -> None:
        """The tick that moved them is over."""
        self._moving.difference_update(samples)

    def given_up(self, *, now: float) -> list[Sample]:
        """Cancelled and overdue samples, of those at rest."""
        return [
            sample
            for sample in self._all()
            if sample not in self._moving
            and (sample.cancelled or (sample.deadline is not None and now >= sample.deadline))
        ]

    def remove(self, sample: Sample) -> None:
        key = (sample.spec.priority, sample.spec.group)
        self._jobs[key].samples.remove(sample)
        if not self._jobs[key].samples:
            del self._jobs[key]

    def evict_all(self) -> list[Sample]:
        everyone = self._all()
        self._jobs = {}
        return everyone

    def _all(self) -> list[Sample]:
        return [sample for job in self._jobs.values() for sample in job.samples]


def share_prefixes(samples: Collection[Sample]) -> Iterator[Sample]:
    """The samples to start; every other one becomes a fork of one that does the same evaluations first."""
    first: dict[SampleSpec, Sample] = {}
    for sample in samples:
        trunk = first.setdefault(sample.prefix, sample) if sample.fork_position else sample
        if trunk is sample:
            yield sample
        else:
            trunk.forks.append(sample)


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
