"""Batches: thousands of requests that are stored until the queue has room, then turned into jobs one by one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import redis.asyncio
from redis.exceptions import LockError

from cynosure.batches import BatchStatus
from cynosure.contract import ResolvedRequest
from cynosure.errors import BatchNotFound, BatchSuperseded
from jobs.queue.record import JobRecord, decode_record, may_see
from jobs.settings import StoreSettings
from jobs.store.answering import answering
from jobs.store.connection import StoreClient
from jobs.store.paging import Page, page_of
from jobs.store.scripts import script

_SCRIPTS = ("open", "stage", "start", "fed", "look", "cancel")
_DIGEST_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch, with everything decided.

    Attributes:
        digest: SHA-256 of the line as the client sent it.
        cached_as: the key of its result in the result cache; `None` if it is not cached.
    """

    digest: str
    custom_id: str | None
    request: ResolvedRequest
    cached_as: str | None

    def encoded(self) -> str:
        fields = {
            "custom_id": self.custom_id,
            "cached_as": self.cached_as,
            "request": self.request.model_dump(mode="json"),
        }
        return self.digest + json.dumps(fields)

    @classmethod
    def decoded(cls, raw: bytes) -> Line:
        fields = json.loads(raw[_DIGEST_LENGTH:])
        request = ResolvedRequest.model_validate(fields["request"])
        return cls(raw[:_DIGEST_LENGTH].decode(), fields["custom_id"], request, fields["cached_as"])


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """A batch as Redis holds it, with the number of its open jobs in each state."""

    id: str
    owner: str
    status: BatchStatus
    created_ms: int
    total: int
    fed: int
    queued: int
    running: int
    ended: dict[str, int]

    @property
    def open(self) -> int:
        return self.queued + self.running


class Batches(StoreClient):
    """The store of batches. Every method raises `StoreUnavailable` if Redis is away."""

    def __init__(self, client: redis.asyncio.Redis, settings: StoreSettings) -> None:
        super().__init__(client, settings)
        self._ttl_s = settings.unfinished_ttl_s + settings.result_ttl_s
        self._run = {name: client.register_script(script(f"batch_{name}")) for name in _SCRIPTS}

    async def open(self, batch_id: str, owner: str, upload: str, idempotency_key: str | None) -> str:
        """Open a batch to receive lines, or reopen the one that the idempotency key made before; returns its id."""
        batch = self._keys.batch(batch_id)
        key = self._keys.batch_key(owner, idempotency_key) if idempotency_key else batch
        args: list[Any] = [batch_id, owner, upload, self._ttl_s, self._keys.batch("")]
        async with answering():
            opened: bytes = await self._accepting(self._run["open"], keys=[batch, key], args=args)
        return opened.decode()

    async def digests(self, batch_id: str, first: int, count: int) -> list[str]:
        """Digests of up to `count` lines from index `first` on, as far as they have arrived."""
        async with answering():
            raw: Any = await self._client.lrange(self._keys.batch_lines(batch_id), first, first + count - 1)
        return [line[:_DIGEST_LENGTH].decode() for line in raw]

    async def stage(self, batch_id: str, upload: str, kept: int, lines: Sequence[Line]) -> None:
        """Keep the first `kept` lines and replace all after them by `lines`.

        Raises:
            BatchSuperseded: another upload has taken over, or the batch was started or cancelled.
        """
        keys = [self._keys.batch(batch_id), self._keys.batch_lines(batch_id)]
        encoded = [line.encoded() for line in lines]
        async with answering():
            _refuse(await self._run["stage"](keys=keys, args=[upload, kept, self._ttl_s, *encoded]), batch_id)

    async def start(self, batch_id: str, owner: str, upload: str) -> None:
        """Start the batch: all of its lines have arrived.

        Raises:
            BatchSuperseded: as `stage`.
        """
        keys = self._keys
        places = [keys.batch(batch_id), keys.batch_lines(batch_id), keys.batches, keys.owned_batches(owner)]
        async with answering():
            args: list[str | int] = [batch_id, upload, self._ttl_s]
            _refuse(await self._accepting(self._run["start"], keys=places, args=args), batch_id)

    async def look(self, batch_id: str, viewer: str) -> BatchRecord:
        """The batch as it is now, if `viewer` (an owner or `EVERYONE`) may see it.

        Raises:
            BatchNotFound: there is none, or it belongs to another owner.
        """
        keys = [self._keys.batch(batch_id), self._keys.batch_open(batch_id), self._keys.batches]
        async with answering():
            flat, queued, running = await self._run["look"](keys=keys, args=[batch_id, self._keys.job("")])
        text = {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)}
        if "owner" not in text or not may_see(viewer, text["owner"]):
            raise BatchNotFound(f"There is no batch '{batch_id}', or it is no longer kept.")
        ended = {name: int(text.get(name, 0)) for name in ("succeeded", "failed", "cancelled", "expired")}
        return BatchRecord(
            id=batch_id,
            owner=text["owner"],
            status=BatchStatus(text["status"]),
            created_ms=int(text["created_ms"]),
            total=int(text["total"]),
            fed=int(text["fed"]),
            queued=queued,
            running=running,
            ended=ended,
        )

    async def page(
        self, owner: str, *, status: BatchStatus | None, cursor: str | None, limit: int
    ) -> Page[BatchRecord]:
        """The owner's batches that have started, after `cursor` and with that status, newest first.

        Raises:
            InvalidRequest: this server gave no such cursor.
        """

        async def read(batch_ids: Sequence[str]) -> list[BatchRecord | None]:
            return [await self._found(batch_id, owner) for batch_id in batch_ids]

        return await page_of(
            self._client,
            self._keys.owned_batches(owner),
            read,
            lambda record: status in (None, record.status),
            cursor=cursor,
            limit=limit,
        )

    async def _found(self, batch_id: str, owner: str) -> BatchRecord | None:
        try:
            return await self.look(batch_id, owner)
        except BatchNotFound:
            return None

    async def lines(self, batch_id: str, first: int, count: int) -> list[Line]:
        """Up to `count` lines from index `first` on."""
        async with answering():
            raw: Any = await self._client.lrange(self._keys.batch_lines(batch_id), first, first + count - 1)
        return [Line.decoded(line) for line in raw]

    async def fed(self, batch_id: str, line: int, job_id: str) -> bool:
        """Record that the line of this index has become a job; `False` if the batch takes no more jobs."""
        keys = [
            self._keys.batch(batch_id),
            self._keys.batch_jobs(batch_id),
            self._keys.batch_open(batch_id),
            self._keys.batch_lines(batch_id),
            self._keys.batches,
        ]
        async with answering():
            answer = await self._run["fed"](keys=keys, args=[line, job_id, self._ttl_s])
        return bool(answer in (b"ok", b"before"))

    async def jobs(self, batch_id: str, first: int, count: int) -> list[tuple[str, JobRecord | None]]:
        """Jobs of up to `count` lines from index `first` on, as far as there are any; `None` for an expired record."""
        async with answering():
            raw: Any = await self._client.lrange(self._keys.batch_jobs(batch_id), first, first + count - 1)
            ids = [job_id.decode() for job_id in raw]
            async with self._client.pipeline(transaction=False) as pipe:
                for job_id in ids:
                    pipe.hgetall(self._keys.job(job_id))
                hashes = await pipe.execute()
        return [
            (job_id, decode_record(job_id, fields) if fields else None)
            for job_id, fields in zip(ids, hashes, strict=True)
        ]

    async def cancel(self, batch_id: str) -> list[str]:
        """Cancel the batch; returns the ids of its open jobs, which the caller must cancel."""
        keys = [self._keys.batch(batch_id), self._keys.batch_open(batch_id), self._keys.batches]
        async with answering():
            raw: Any = await self._run["cancel"](keys=keys, args=[batch_id])
        return [job_id.decode() for job_id in raw]

    async def running(self) -> list[str]:
        """Ids of the running batches, oldest first."""
        async with answering():
            raw: Any = await self._client.zrange(self._keys.batches, 0, -1)
        return [batch_id.decode() for batch_id in raw]

    async def forget(self, batch_id: str) -> None:
        """Remove a batch that is no longer kept from the running ones."""
        async with answering():
            await self._client.zrem(self._keys.batches, batch_id)

    @asynccontextmanager
    async def feeding(self, batch_id: str, *, ttl_s: float) -> AsyncIterator[bool]:
        """A lock that makes this the one gateway that feeds the batch; `False` if another one holds it.

        A gateway that is slower than `ttl_s` loses the lock; line by line, idempotency keys make that harmless.
        """
        lock = self._client.lock(self._keys.batch_lock(batch_id), timeout=ttl_s)
        async with answering():
            is_mine = await lock.acquire(blocking=False)
        try:
            yield is_mine
        finally:
            if is_mine:
                async with answering():
                    with suppress(LockError):  # it expired, and may be another gateway's by now
                        await lock.release()


def _refuse(answer: bytes, batch_id: str) -> None:
    if answer == b"gone":
        raise BatchNotFound(f"There is no batch '{batch_id}', or it is no longer kept.")
    if answer == b"superseded":
        raise BatchSuperseded("Another upload with this Idempotency-Key has taken over, or the batch was cancelled.")
