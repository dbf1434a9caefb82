"""Orders of ticks: Cynosure's own schedule, and the textbook's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.queueing.costs import Costs
from benchmarks.stream import Asked
from models.engine.loaded import FEW_ROWS
from models.engine.schedule import Rows, Schedule


@dataclass(eq=False)
class Job:
    """A request on its way."""

    asked: Asked
    sent: float
    pictures_left: int = field(init=False)
    last_moved: float = 0.0

    def __post_init__(self) -> None:
        self.pictures_left = self.asked.count


@dataclass(eq=False)
class Picture:
    """One of a job's pictures, as `Schedule` sees a sample."""

    job: Job
    group: str
    evaluations_left: int
    priority: int = 0
    shape: tuple[int, ...] = ()
    row_cost: float = 1.0

    @property
    def rows_now(self) -> int:
        return 2 if self.job.asked.mode == "classifier_free" else 1

    @property
    def wants_classifier_now(self) -> bool:
        return self.job.asked.mode == "classifier"

    def is_expired(self, now: float) -> bool:
        return False


class Policy(Protocol):
    """Chooses the pictures of ticks."""

    @property
    def has_idle(self) -> bool: ...
    def enqueue(self, sample: Picture, *, now: float) -> None: ...
    def take(self, *, now: float) -> list[Picture]: ...
    def put_back(self, samples: Collection[Picture]) -> None: ...
    def remove(self, sample: Picture) -> None: ...


class Ordered:
    """Ticks of an even share of the rows, up to the knee and padded, for the pictures that come first in one order."""

    def __init__(self, costs: Costs, order: Callable[[Picture], float]) -> None:
        self._costs, self._order = costs, order
        self._waiting: dict[Picture, int] = {}  # with the number in which they came
        self._moving: set[Picture] = set()
        self._numbers = itertools.count()

    @property
    def has_idle(self) -> bool:
        return bool(self._waiting)

    def enqueue(self, sample: Picture, *, now: float) -> None:
        self._waiting[sample] = next(self._numbers)

    def take(self, *, now: float) -> list[Picture]:
        total = sum(picture.rows_now for picture in (*self._waiting, *self._moving))
        batching = self._costs.batching
        share = batching.padded(min(batching.knee, math.ceil(total / self._costs.lanes)))
        chosen: list[Picture] = []
        rows = 0
        for picture in sorted(self._waiting, key=lambda picture: (self._order(picture), self._waiting[picture])):
            if chosen and rows + picture.rows_now > share:
                break
            chosen.append(picture)
            rows += picture.rows_now
            picture.job.last_moved = now
        for picture in chosen:
            del self._waiting[picture]
        self._moving.update(chosen)
        return chosen

    def put_back(self, samples: Collection[Picture]) -> None:
        self._moving.difference_update(samples)
        for picture in samples:
            self._waiting[picture] = next(self._numbers)

    def remove(self, sample: Picture) -> None:
        del self._waiting[sample]


def _work_left(picture: Picture) -> float:
    return picture.evaluations_left * picture.rows_now * picture.job.asked.count


def _work_done(picture: Picture) -> float:
    return (picture.job.asked.steps - picture.evaluations_left) * picture.rows_now * picture.job.asked.count


def schedule(costs: Costs, *, least_rows: int | None = None) -> Schedule[Picture]:
    """Cynosure's, tuned as `LoadedPack.tune` does; with `least_rows` at the knee, its ticks are never shortened."""
    batching, knee = costs.batching, costs.batching.knee

    def padded(rows: Rows, picture: Picture) -> Rows:
        networks = zip((batching, costs.classifier_batching), rows, strict=True)
        return Rows(*(network.padded(count) if count else 0 for network, count in networks))

    return Schedule(
        row_budget=knee,
        least_rows=batching.least if least_rows is None else least_rows,
        classifier_cost=costs.classifier(knee) / costs.denoiser(knee),
        lanes=costs.lanes,
        few_rows=FEW_ROWS * costs.lanes,
        tick_s=costs.denoiser(knee) / 1000,
        padded=padded,
    )


POLICIES: Mapping[str, Callable[[Costs], Policy]] = {
    "Cynosure": schedule,
    "latest first, whole shares": lambda costs: schedule(costs, least_rows=costs.batching.knee),
    "first come, first served": lambda costs: Ordered(costs, lambda picture: picture.job.sent),
    "shortest remaining work": lambda costs: Ordered(costs, _work_left),
    "least attained service": lambda costs: Ordered(costs, _work_done),
    "taking turns": lambda costs: Ordered(costs, lambda picture: picture.job.last_moved),
}
"""By name: FCFS, SRPT (Schrage 1968), LAS or foreground-background, and processor sharing (Kleinrock 1976)."""
