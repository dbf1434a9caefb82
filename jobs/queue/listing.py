"""One's own jobs, newest first, a page at a time."""

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
"""Jobs that one page looks at for those of one status; where they are rarer, the page is shorter, or empty."""


@dataclass(frozen=True)
class Page:
    """Some jobs, and where the next ones begin; `next_cursor` is `None` after the last."""

    records: tuple[JobRecord, ...]
    next_cursor: str | None


class Listing(StoreClient):
    """Looks through the owners' indices."""

    async def page(self, owner: str, *, status: JobStatus | None, cursor: str | None, limit: int) -> Page:
        """The owner's jobs after `cursor`, with that status, newest first.

        Raises:
            InvalidRequest: the cursor is none of ours.
            StoreUnavailable: Redis is away.
        """
        after = _parse(cursor)
        found: list[JobRecord] = []
        for _ in range(MAX_SCANNED // _CHUNK):
            entries = await self._entries(owner, after)
            for score, job_id, record in entries:
                after = score, job_id
                if record is not None and status in (None, record.status):
                    found.append(record)
                if len(found) == limit:
                    return Page(tuple(found), f"{score}.{job_id}")
            if len(entries) < _CHUNK:
                return Page(tuple(found), None)
        return Page(tuple(found), None if after is None else f"{after[0]}.{after[1]}")

    async def _entries(self, owner: str, after: tuple[int, str] | None) -> list[tuple[int, str, JobRecord | None]]:
        """The next so many entries; those whose job is no longer kept leave the index."""
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
        """Entries below `after` in the order of (time, id), the highest first."""
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
        ids = [(score, member) for member in below] + [(int(later), member.decode()) for member, later in rest]
        return ids[:_CHUNK]


def _parse(cursor: str | None) -> tuple[int, str] | None:
    if cursor is None:
        return None
    found = _CURSOR.fullmatch(cursor)
    if found is None:
        raise InvalidRequest("cursor is none that this server gave; take next_cursor of a page.", field="cursor")
    return int(found.group(1)), found.group(2)
