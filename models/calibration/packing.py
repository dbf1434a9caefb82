"""Splits the rows of a tick into batches so that the lanes finish all networks soonest."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol


class Network(Protocol):
    """A network's estimated times; `models.calibration.NetworkCalibration` implements it."""

    def batches(self, rows: int, *, lanes: int, limit: int) -> list[int]: ...

    def row_seconds(self, rows: int) -> float: ...


Work = Sequence[tuple[Network, int]]
"""The networks of a tick, in the order in which they start, with the number of rows of each."""
Plan = list[list[int]]
"""For each network of a tick, the rows of its batches in the order in which they start."""


def packed(work: Work, *, lanes: int, limit: int) -> Plan:
    """The plan with the shorter estimate of two: spread every network over all lanes, or give each separate lanes.

    With few rows the second is quicker: half a batch takes more than half its time.

    Args:
        work: the networks and their rows.
        lanes: batches that run at once.
        limit: most rows that a batch may have.
    """
    over_all = [network.batches(rows, lanes=lanes, limit=limit) for network, rows in work]
    if lanes == 1 or len(work) == 1:
        return over_all
    shares = [sum(map(network.row_seconds, batches)) for (network, _), batches in zip(work, over_all, strict=True)]
    apart = [
        network.batches(rows, lanes=max(1, round(lanes * share / sum(shares))), limit=limit)
        for (network, rows), share in zip(work, shares, strict=True)
    ]
    return min(over_all, apart, key=lambda plan: seconds_of(work, plan, lanes=lanes))


@lru_cache(maxsize=4096)
def quickest(rows: int, sizes: tuple[tuple[int, float], ...]) -> tuple[int, ...]:
    """Split `rows` into the batches that take least time one after the other, largest first; at most one is padded.

    An unbounded knapsack problem, solved for 1, 2, … rows in turn.

    Args:
        rows: how many there are.
        sizes: the rows of a batch, padding included, and the time it takes.
    """
    least, last = [0.0], [0]
    for count in range(1, rows + 1):
        time, size = min((least[max(0, count - size)] + each, size) for size, each in sizes)
        least.append(time)
        last.append(size)
    batches = []
    while rows:
        batches.append(min(rows, last[rows]))
        rows -= batches[-1]
    return tuple(sorted(batches, reverse=True))


def seconds_of(work: Work, plan: Plan, *, lanes: int) -> float:
    """Estimated seconds until the last lane finishes, if each takes the next batch as soon as it is free."""
    free_at = [0.0] * lanes
    for (network, _), batches in zip(work, plan, strict=True):
        for rows in batches:
            heapq.heapreplace(free_at, free_at[0] + network.row_seconds(rows))
    return lanes * max(free_at)  # row_seconds assumes that every lane is busy
