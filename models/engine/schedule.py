"""Who runs next: the engine's policy, in plain Python, without a tensor."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from models.spec import Guidance, SampleSpec


@dataclass(eq=False)
class Sample:
    """One picture on its way.

    Attributes:
        num_positions: network evaluations in all.
        position: evaluations done.
        deadline: on the engine's clock, in seconds, or `None`.
        slot: its place in the runner's state, while it runs.
        handle: whom to answer; opaque here.
        forks: samples that are the same as this one up to `fork_position`, and start from its state there.
        inherited: the state that a fork starts from; opaque here.
    """

    spec: SampleSpec
    num_positions: int
    handle: Any
    deadline: float | None = None
    position: int = 0
    slot: int | None = None
    cancelled: bool = False
    forks: list[Sample] = field(default_factory=list)
    inherited: Any = None

    @property
    def fork_position(self) -> int:
        """Evaluations before the guidance interval: the same whatever the scales."""
        return self.spec.guidance.first_active(self.num_positions)

    @property
    def prefix(self) -> SampleSpec:
        """What decides the evaluations before the guidance interval: the spec without its scales."""
        steered = self.spec.guidance
        return replace(self.spec, guidance=Guidance(conditional=steered.conditional, interval=steered.interval))

    def take_forks(self) -> list[Sample]:
        """The forks, which are then nobody's."""
        forks, self.forks = self.forks, []
        return forks

    @property
    def guided_now(self) -> bool:
        return self.spec.guidance.is_active(self.position, self.num_positions)

    @property
    def max_rows(self) -> int:
        return len(self.spec.guidance.rows(active=True))

    @property
    def is_done(self) -> bool:
        return self.position >= self.num_positions


@dataclass
class Schedule:
    """Waiting and running samples of one pack.

    Waiting samples are admitted by priority, and within one priority their groups take turns, so that a job of 64
    pictures does not hold up a job of one.

    Attributes:
        row_budget: denoiser rows that one tick may hold.
    """

    row_budget: int
    running: list[Sample] = field(default_factory=list)
    _waiting: dict[int, dict[str, deque[Sample]]] = field(default_factory=dict)

    def enqueue(self, sample: Sample) -> None:
        groups = self._waiting.setdefault(sample.spec.priority, {})
        groups.setdefault(sample.spec.group, deque()).append(sample)

    @property
    def num_waiting(self) -> int:
        return sum(len(queue) for groups in self._waiting.values() for queue in groups.values())

    @property
    def is_idle(self) -> bool:
        return not self.running and not self.num_waiting

    def admit(self) -> list[Sample]:
        """Move waiting samples to `running` while their rows fit; returns the newly admitted."""
        admitted: list[Sample] = []
        used = sum(sample.max_rows for sample in self.running)
        for priority in sorted(self._waiting, reverse=True):
            groups = self._waiting[priority]
            while groups:
                name, queue = next(iter(groups.items()))
                # Two rows must fit even where the budget has shrunk to one: nothing may wait for ever.
                if used and used + queue[0].max_rows > self.row_budget:
                    return admitted
                sample = queue.popleft()
                del groups[name]
                if queue:
                    groups[name] = queue  # to the end of the turn order
                used += sample.max_rows
                self.running.append(sample)
                admitted.append(sample)
            del self._waiting[priority]
        return admitted

    def evict(self, *, now: float) -> list[Sample]:
        """Remove and return cancelled and overdue samples, waiting or running."""

        def leaves(sample: Sample) -> bool:
            return sample.cancelled or (sample.deadline is not None and now >= sample.deadline)

        gone = [sample for sample in self._all() if leaves(sample)]
        for sample in gone:
            self.remove(sample)
        return gone

    def remove(self, sample: Sample) -> None:
        if sample in self.running:
            self.running.remove(sample)
            return
        groups = self._waiting[sample.spec.priority]
        groups[sample.spec.group].remove(sample)
        if not groups[sample.spec.group]:
            del groups[sample.spec.group]

    def retire_done(self) -> list[Sample]:
        """Remove and return the running samples that have reached their end."""
        done = [sample for sample in self.running if sample.is_done]
        self.running = [sample for sample in self.running if not sample.is_done]
        return done

    def evict_all(self) -> list[Sample]:
        everyone = self._all()
        self.running = []
        self._waiting = {}
        return everyone

    def _all(self) -> list[Sample]:
        return [*self.running, *(s for groups in self._waiting.values() for queue in groups.values() for s in queue)]


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
        quantum_s: seconds that a turn is worth.
    """

    def __init__(self, quantum_s: float = 0.1) -> None:
        self._quantum_s = quantum_s
        self._credit_s: dict[str, float] = {}  # in the order of turns

    def next(self, busy: Collection[str]) -> str:
        """One of the `busy` names (at least one)."""
        self._credit_s = {name: credit for name, credit in self._credit_s.items() if name in busy}
        for name in busy:
            self._credit_s.setdefault(name, self._quantum_s)
        while True:
            name, credit = next(iter(self._credit_s.items()))
            if credit > 0:
                return name
            del self._credit_s[name]
            self._credit_s[name] = credit + self._quantum_s  # to the end of the round

    def charge(self, name: str, seconds: float) -> None:
        """Take the cost of a tick that `next` allowed."""
        self._credit_s[name] -= seconds
