"""What the scenarios share: a house, traffic on it, and the books at the end."""

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
    """How much of it: `make chaos` at 1, shorter below."""

    factor: float = 1.0
    seed: int = 0
    models: str = "fashion"

    def of(self, count: int, *, least: int = 1) -> int:
        return max(least, round(count * self.factor))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One scenario under way.

    Attributes:
        recovery: seconds from each blow until all that it hit went on.
        expected_to_fail: jobs that should.
        result: has its figures once the trial is over.
    """

    house: House
    traffic: Traffic
    result: Result
    recovery: list[float] = field(default_factory=list)
    expected_to_fail: set[str] = field(default_factory=set)


@contextmanager
def trial(name: str, house: House, scale: Scale, *, tended: bool = False) -> Iterator[Trial]:
    """Open the house for the body; then wait for all that was accepted, and close the books.

    Args:
        name: of the result.
        house: one that is not open yet.
        scale: whose seed is the traffic's.
        tended: start whatever has died, as a supervisor does.
    """
    with house, Traffic(house.urls, seed=scale.seed) as traffic:
        if tended:
            house.tend()
        run = Trial(house=house, traffic=traffic, result=Result(name=name))
        yield run
        traffic.wait_all()
        run.result.recovery_s = max(run.recovery, default=math.nan)
        close_books(run.result, house, traffic, expected_to_fail=run.expected_to_fail)
