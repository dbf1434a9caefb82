"""Common frame of the scenarios: a deployment, traffic on it, and the check of all jobs at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from chaos.books import Result, close_books
from chaos.house import House
from chaos.traffic import Traffic


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Size of a scenario: `make chaos` runs at factor 1; smaller factors are shorter."""

    factor: float = 1.0
    seed: int = 0
    models: str = "fashion"

    def of(self, count: int, *, least: int = 1) -> int:
        return max(least, round(count * self.factor))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One scenario under way.

    Attributes:
        recovery: seconds from each fault until the affected jobs went on.
        expected_to_fail: ids of jobs that should fail.
        result: filled in when the trial ends.
    """

    house: House
    traffic: Traffic
    result: Result
    recovery: list[float] = field(default_factory=list)
    expected_to_fail: set[str] = field(default_factory=set)


@contextmanager
def trial(name: str, house: House, scale: Scale, *, tended: bool = False) -> Iterator[Trial]:
    """Start the house for the body; then wait for all accepted jobs, and check them.

    Args:
        name: name of the result.
        house: a house that is not started yet.
        scale: its seed is used for the traffic.
        tended: restart gateways and workers that have died, as a supervisor does.
    """
    with house, Traffic(house.urls, seed=scale.seed) as traffic:
        if tended:
            house.tend()
        run = Trial(house=house, traffic=traffic, result=Result(name=name))
        yield run
        traffic.wait_all()
        run.result.recovery_s = max(run.recovery, default=math.nan)
        close_books(run.result, house, traffic, expected_to_fail=run.expected_to_fail)
