"""A model's last jobs: how long they waited and ran, and how many pictures they made. No I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cynosure.contract import Quantiles, RecentJobs

MAX_JOBS = 256
"""Kept for each model."""
JOBS_S = 300.0
"""The last jobs are those that ended within this time."""
RATE_S = 60.0


def recent_jobs(entries: Sequence[bytes], now_ms: int) -> RecentJobs | None:
    """The model's last jobs from the entries that `finish.lua` wrote, newest first; `None` if there are none."""
    ended = [tuple(map(int, entry.split())) for entry in entries]
    ago_s = [max(0.0, (now_ms - finished_ms) / 1000) for finished_ms, *_ in ended]
    count = sum(ago <= JOBS_S for ago in ago_s)
    if not count:
        return None
    drawn = sum(pictures for ago, (*_, pictures) in zip(ago_s, ended, strict=True) if ago <= RATE_S)
    is_cut_off = len(ended) == MAX_JOBS and ago_s[-1] < RATE_S
    return RecentJobs(
        jobs=count,
        pictures_per_second=drawn / (max(ago_s[-1], 1.0) if is_cut_off else RATE_S),
        waited_s=_quantiles([waited_ms / 1000 for _, waited_ms, _, _ in ended[:count]]),
        ran_s=_quantiles([ran_ms / 1000 for _, _, ran_ms, _ in ended[:count]]),
    )


def _quantiles(seconds: Sequence[float]) -> Quantiles:
    """By nearest rank: each is the time of a job."""
    ordered = sorted(seconds)
    return Quantiles(
        p50=ordered[math.ceil(0.5 * len(ordered)) - 1],
        p95=ordered[math.ceil(0.95 * len(ordered)) - 1],
    )
