"""Compares the accepted jobs with their results, and tabulates the scenarios."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

from chaos.house import PREFIX, House
from chaos.traffic import Traffic


@dataclass(kw_only=True)
class Result:
    """One scenario's line of the table.

    Attributes:
        accepted: jobs that were answered with 2xx.
        finished_once: accepted jobs that ended as expected, and did not change after they finished.
        lost: accepted jobs that no gateway knows, or that ended unexpectedly.
        duplicated: records that no answer reported, and jobs that succeeded twice or changed after they finished.
        stuck: accepted jobs that did not end.
        endless: keys without an expiry.
        rows: samples left in the engines.
        faults: answers that were neither success nor a proper refusal.
        answers: number of answers by status, if counted.
        recovery_s: the longest time from a fault until the affected jobs went on.
        note: further remarks.
    """

    name: str
    accepted: int = 0
    finished_once: int = 0
    lost: int = 0
    duplicated: int = 0
    stuck: int = 0
    endless: int = 0
    rows: int = 0
    faults: list[str] = field(default_factory=list)
    answers: Counter[int] = field(default_factory=Counter)
    recovery_s: float = math.nan
    note: str = ""
    skipped: str = ""

    @property
    def holds(self) -> bool:
        """Whether the guarantees held."""
        broken = (self.lost, self.duplicated, self.stuck, self.endless, self.rows, len(self.faults))
        return bool(self.skipped) or (self.accepted == self.finished_once > 0 and not any(broken))


def close_books(result: Result, house: House, traffic: Traffic, *, expected_to_fail: Set[str] = frozenset()) -> None:
    """Fill in `result` by checking every accepted job in the store; stops the house's workers."""
    result.accepted, result.faults = len(traffic.accepted), traffic.faults
    for job_id in traffic.accepted:
        first, current = traffic.finished.get(job_id), traffic.look(job_id)
        if current is None:
            result.lost += 1
        elif first is None:
            result.stuck += 1
        elif first != current or _successes(current) > 1:
            result.duplicated += 1
        elif not _is_as_expected(traffic, current, "failed" if job_id in expected_to_fail else "succeeded"):
            result.lost += 1
        else:
            result.finished_once += 1
    hashes = house.client.scan_iter(f"{PREFIX}:job:*", count=1000, _type="HASH")
    records = sum(b":images" not in key for key in hashes)
    result.duplicated += max(0, records - len(traffic.accepted))
    result.endless = len(house.endless_keys())
    result.rows = house.rows_left()


def _successes(job: dict[str, object]) -> int:
    attempts = job["attempts"]
    assert isinstance(attempts, list)
    return sum(attempt["outcome"] == "succeeded" for attempt in attempts)


def _is_as_expected(traffic: Traffic, job: dict[str, Any], status: str) -> bool:
    return job["status"] == status and all(_is_intact(traffic, image) for image in job["images"])


def _is_intact(traffic: Traffic, image: dict[str, str]) -> bool:
    png = traffic.picture(image["url"])
    return png is not None and hashlib.sha256(png).hexdigest() == image["sha256"]


def table(results: list[Result]) -> str:
    """All results as a Markdown table."""
    lines = [
        "| scenario | accepted | finished once | lost | duplicated | stuck | endless keys | rows left | faulty answers "
        "| recovery |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        if result.skipped:
            lines.append(f"| {result.name} | skipped: {result.skipped} | | | | | | | | |")
            continue
        recovery = "" if math.isnan(result.recovery_s) else f"{result.recovery_s:.1f} s"
        cells = (
            result.accepted,
            result.finished_once,
            result.lost,
            result.duplicated,
            result.stuck,
            result.endless,
            result.rows,
            len(result.faults),
            recovery,
        )
        lines.append(f"| {result.name} | {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(lines)
