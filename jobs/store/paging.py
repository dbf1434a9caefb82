"""An owner's jobs or batches, newest first, a page at a time."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import redis.asyncio

from cynosure.errors import InvalidRequest
from jobs.store.answering import answering

_CURSOR = re.compile(r"(\d{1,16})\.([A-Za-z0-9_-]{1,64})")
_CHUNK = 100
MAX_SCANNED = 2_000
"""Most records that are read for one page. If wanted ones are rarer, the page is shorter, or empty."""
Record = TypeVar("Record")


@dataclass(frozen=True)
class Page(Generic[Record]):
    """Some records, and the cursor of the next page; `None` on the last one."""

    records: tuple[Record, ...]
    next_cursor: str | None


async def page_of(
    client: redis.asyncio.Redis,
    index: str,
    read: Callable[[Sequence[str]], Awaitable[Sequence[Record | None]]],
    is_wanted: Callable[[Record], bool],
    *,
    cursor: str | None,
    limit: int,
) -> Page[Record]:
    """The wanted records after `cursor`.

    Args:
        client: the connection.
        index: sorted set of ids by time of acceptance in milliseconds.
        read: the records of ids; `None` for one that is no longer kept, whose id is then removed from the index.
        is_wanted: whether a record belongs on the page.
        cursor: `next_cursor` of the page before.
        limit: most records of a page.

    Raises:
        InvalidRequest: this server gave no such cursor.
        StoreUnavailable: Redis is away.
    """
    after = _parse(cursor)
    records: list[Record] = []
    for _ in range(MAX_SCANNED // _CHUNK):
        async with answering():
            ids = await _ids(client, index, after)
        found = await read([member for _, member in ids])
        gone = [member for (_, member), record in zip(ids, found, strict=True) if record is None]
        if gone:
            async with answering():
                await client.zrem(index, *gone)
        for (score, member), record in zip(ids, found, strict=True):
            after = score, member
            if record is not None and is_wanted(record):
                records.append(record)
            if len(records) == limit:
                return Page(tuple(records), f"{score}.{member}")
        if len(ids) < _CHUNK:
            return Page(tuple(records), None)
    return Page(tuple(records), None if after is None else f"{after[0]}.{after[1]}")


async def _ids(client: redis.asyncio.Redis, index: str, after: tuple[int, str] | None) -> list[tuple[int, str]]:
    """Entries before `after` in (time, id) order, highest first."""
    if after is None:
        raw: Any = await client.zrange(index, 0, _CHUNK - 1, desc=True, withscores=True)
        return [(int(score), member.decode()) for member, score in raw]
    score, last = after
    same: Any = await client.zrange(index, score, score, desc=True, byscore=True)
    below = [member.decode() for member in same if member.decode() < last]
    rest: Any = await client.zrange(
        index, f"({score}", "-inf", desc=True, byscore=True, offset=0, num=_CHUNK, withscores=True
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
