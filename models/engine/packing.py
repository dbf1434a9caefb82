"""How the rows of a tick become batches, so that the lanes are done with all networks soonest."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Protocol


class Network(Protocol):
    """What is known of a network, as `models.calibration.NetworkCalibration` has it."""

    def batches(self, rows: int, *, lanes: int, limit: int) -> list[int]: ...

    def row_seconds(self, rows: int) -> float: ...


Work = Sequence[tuple[Network, int]]
"""The networks of a tick, in the order in which they start, and the rows of each."""
Plan = list[list[int]]
"""Of each network of a tick: the rows of its batches, in the order in which they start."""


def packed(work: Work, *, lanes: int, limit: int) -> Plan:
    """The quicker, by estimate, of two plans: every network over all lanes, or each in lanes of its own.

    Of few rows the second is quicker: half a batch takes more than half its time.

    Args:
        work: what is to be done.
        lanes: batches that run at once.
        limit: rows that a batch may have.
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
    """When the last lane is done, each taking the next batch as soon as it is free, in units that only compare."""
    free_at = [0.0] * lanes
    for (network, _), batches in zip(work, plan, strict=True):
        for rows in batches:
            heapq.heapreplace(free_at, free_at[0] + network.row_seconds(rows))
    return max(free_at)
