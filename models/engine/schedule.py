"""Who runs next: the engine's policy, in plain Python, without a tensor."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from models.spec import SampleSpec


@dataclass(eq=False)
class Sample:
    """One picture on its way.

    Attributes:
        num_positions: network evaluations in all.
        position: evaluations done.
        deadline: on the engine's clock, in seconds, or `None`.
        slot: its place in the runner's state, while it runs.
        handle: whom to answer; opaque here.
    """

    spec: SampleSpec
    num_positions: int
    handle: Any
    deadline: float | None = None
    position: int = 0
    slot: int | None = None
    cancelled: bool = False

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
