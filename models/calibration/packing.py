"""Splits the rows of a tick into batches so that the lanes finish all networks soonest."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
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
    return min(over_all, apart, key=lambda plan: _done_at(work, plan, lanes))


def _done_at(work: Work, plan: Plan, lanes: int) -> float:
    """Estimated time when the last lane finishes, if each takes the next batch as soon as it is free.

    Meaningful only in comparison with other plans.
    """
    free_at = [0.0] * lanes
    for (network, _), batches in zip(work, plan, strict=True):
        for rows in batches:
            heapq.heapreplace(free_at, free_at[0] + network.row_seconds(rows))
    return max(free_at)
