"""What came of it all."""

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
        finished_once: of those, jobs that ended as they should, seen the same at the end as when they finished.
        lost: of those, jobs that nobody knows, or that ended as they should not have.
        duplicated: records that no client was told of, jobs that succeeded twice, or changed after they had finished.
        stuck: of those, jobs that did not end.
        endless: keys without an expiry.
        rows: samples left in the engines.
        faults: answers that were neither success nor honest refusal.
        answers: how often each status was answered, where that is counted.
        recovery_s: the longest time from a blow until all that it hit went on.
        note: what else is worth saying.
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
        """Whether what is promised was kept."""
        broken = (self.lost, self.duplicated, self.stuck, self.endless, self.rows, len(self.faults))
        return bool(self.skipped) or (self.accepted == self.finished_once > 0 and not any(broken))


def close_books(result: Result, house: House, traffic: Traffic, *, expected_to_fail: Set[str] = frozenset()) -> None:
    """Compare what was accepted with what there is; stops the house's workers."""
    result.accepted, result.faults = len(traffic.accepted), traffic.faults
    for job_id in traffic.accepted:
        first, now = traffic.finished.get(job_id), traffic.look(job_id)
        if now is None:
            result.lost += 1
        elif first is None:
            result.stuck += 1
        elif first != now or _successes(now) > 1:
            result.duplicated += 1
        elif not _is_as_it_should(traffic, now, "failed" if job_id in expected_to_fail else "succeeded"):
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


def _is_as_it_should(traffic: Traffic, job: dict[str, Any], status: str) -> bool:
    return job["status"] == status and all(_is_whole(traffic, image) for image in job["images"])


def _is_whole(traffic: Traffic, image: dict[str, str]) -> bool:
    png = traffic.picture(image["url"])
    return png is not None and hashlib.sha256(png).hexdigest() == image["sha256"]


def table(results: list[Result]) -> str:
    """All results as Markdown."""
    lines = [
        "| scenario | accepted | finished once | lost | duplicated | stuck | endless keys | rows left | faulty answers "
        "| recovery |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        if one.skipped:
            lines.append(f"| {one.name} | skipped: {one.skipped} | | | | | | | | |")
            continue
        recovery = "" if math.isnan(one.recovery_s) else f"{one.recovery_s:.1f} s"
        cells = (
            one.accepted,
            one.finished_once,
            one.lost,
            one.duplicated,
            one.stuck,
            one.endless,
            one.rows,
            len(one.faults),
            recovery,
        )
        lines.append(f"| {one.name} | {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(lines)
