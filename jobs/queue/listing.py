"""An owner's jobs, newest first, a page at a time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from cynosure.contract import JobStatus
from cynosure.errors import InvalidRequest
from jobs.queue.record import JobRecord, decode_record
from jobs.store.answering import answering
from jobs.store.connection import StoreClient

_CURSOR = re.compile(r"(\d{1,16})\.([A-Za-z0-9_-]{1,64})")
_CHUNK = 100
MAX_SCANNED = 2_000
"""Most jobs that are read for one page. If jobs of the requested status are rarer, the page is shorter, or empty."""


@dataclass(frozen=True)
class Page:
    """Some jobs, and the cursor of the next page; `None` on the last one."""

    records: tuple[JobRecord, ...]
    next_cursor: str | None


class Listing(StoreClient):
    """Reads each owner's index of jobs."""

    async def page(self, owner: str, *, status: JobStatus | None, cursor: str | None, limit: int) -> Page:
        """The owner's jobs after `cursor`, with that status, newest first.

        Raises:
            InvalidRequest: this server gave no such cursor.
            StoreUnavailable: Redis is away.
        """
        after = _parse(cursor)
        records: list[JobRecord] = []
        for _ in range(MAX_SCANNED // _CHUNK):
            entries = await self._entries(owner, after)
            for score, job_id, record in entries:
                after = score, job_id
                if record is not None and status in (None, record.status):
                    records.append(record)
                if len(records) == limit:
                    return Page(tuple(records), f"{score}.{job_id}")
            if len(entries) < _CHUNK:
                return Page(tuple(records), None)
        return Page(tuple(records), None if after is None else f"{after[0]}.{after[1]}")

    async def _entries(self, owner: str, after: tuple[int, str] | None) -> list[tuple[int, str, JobRecord | None]]:
        """The next `_CHUNK` entries; those whose job is no longer kept are removed from the index."""
        index = self._keys.owned(owner)
        async with answering():
            ids = await self._ids(index, after)
            async with self._client.pipeline(transaction=False) as pipe:
                for _, job_id in ids:
                    pipe.hgetall(self._keys.job(job_id))
                hashes = await pipe.execute()
            gone = [job_id for (_, job_id), fields in zip(ids, hashes, strict=True) if not fields]
            if gone:
                await self._client.zrem(index, *gone)
        return [
            (score, job_id, decode_record(job_id, fields) if fields else None)
            for (score, job_id), fields in zip(ids, hashes, strict=True)
        ]

    async def _ids(self, index: str, after: tuple[int, str] | None) -> list[tuple[int, str]]:
        """Entries before `after` in (time, id) order, highest first."""
        if after is None:
            raw: Any = await self._client.zrange(index, 0, _CHUNK - 1, desc=True, withscores=True)
            return [(int(score), member.decode()) for member, score in raw]
        score, job_id = after
        same: Any = await self._client.zrange(index, score, score, desc=True, byscore=True)
        below = [member.decode() for member in same if member.decode() < job_id]
        rest: Any = await self._client.zrange(
            index,
            f"({score}",
            "-inf",
            desc=True,
            byscore=True,
            offset=0,
            num=_CHUNK,
            withscores=True,
        )
        ids = [(score, member) for member in below] + [(int(earlier), member.decode()) for member, earlier in rest]
        return ids[:_CHUNK]


def _parse(cursor: str | None) -> tuple[int, str] | None:
    if cursor is None:
        return None
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise InvalidRequest("cursor does not come from this server; use the next_cursor of a page.", field="cursor")
    return int(match.group(1)), match.group(2)
