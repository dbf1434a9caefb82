"""The store: the only caller of the scripts. An async face for the gateway, a sync one for the workers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
import redis.asyncio

from app.jobs.answering import answering
from app.jobs.keys import Keys
from app.jobs.record import (
    ANONYMOUS,
    EVERYONE,
    PRIORITIES,
    Beat,
    Claim,
    Finished,
    Happening,
    JobRecord,
    Verdict,
    decode_record,
)
from app.jobs.settings import StoreSettings
from cynosure.contract import JobError, JobStatus, Priority, ResolvedRequest
from cynosure.errors import (
    IdempotencyConflict,
    ImageNotFound,
    JobExpired,
    JobNotFound,
    QueueFull,
)
from cynosure.resolving import result_key

_SCRIPTS = {path.stem: path.read_text() for path in (Path(__file__).parent / "scripts").glob("*.lua")}
MAX_EVENTS = 256
"""Of a job's events that are kept; a follower who is further behind misses the oldest."""
_EXHAUSTED = JobError(
    code="attempts_exhausted", message="Every worker that took this job was lost before it was done."
).model_dump_json()


@dataclass(frozen=True)
class Accepted:
    """An accepted job; `waits` unless it was made before or is answered already."""

    id: str
    waits: bool


def _known_ttl(settings: StoreSettings) -> int:
    return settings.unfinished_ttl_s + settings.result_ttl_s + settings.tombstone_ttl_s


class JobStore:
    """The gateway's face: accept, look, cancel. Every method raises `StoreUnavailable` where Redis is away."""

    def __init__(self, client: redis.asyncio.Redis, settings: StoreSettings) -> None:
        self._client = client
        self._settings = settings
        self._keys = Keys(settings.key_prefix)
        self._accept, self._cancel, self._index = (
            client.register_script(_SCRIPTS[name]) for name in ("accept", "cancel", "index")
        )

    @classmethod
    @asynccontextmanager
    async def connect(cls, settings: StoreSettings) -> AsyncIterator[JobStore]:
        client = redis.asyncio.Redis.from_url(settings.redis_url, client_name="cynosure-gateway")
        try:
            yield cls(client, settings)
        finally:
            await client.aclose()

    async def ping(self) -> None:
        async with answering():
            await self._client.ping()

    async def accept(
        self,
        job_id: str,
        request: ResolvedRequest,
        *,
        owner: str,
        steps: int,
        idempotency_key: str | None,
        fingerprint: str,
        cached_as: str | None = None,
    ) -> Accepted:
        """Write the record, the queue entry and the idempotency key, all or nothing.

        Where `cached_as` is the `result_key` of a job of the same owner that has succeeded, the new job has its
        pictures at once. Neither it nor `idempotency_key` tells one owner anything of another's jobs.

        Raises:
            IdempotencyConflict: the key made another job.
            QueueFull: the model's queue is at its limit.
        """
        keys, settings = self._keys, self._settings
        idempotency = keys.idempotency(owner, idempotency_key) if idempotency_key else keys.job(job_id)
        queues = [keys.queue(request.model, priority) for priority in PRIORITIES]
        async with answering(), self._client.pipeline() as pipe:
            await self._accept(
                keys=[
                    keys.job(job_id),
                    keys.known(job_id),
                    keys.queue(request.model, request.priority),
                    *queues,
                    idempotency,
                    keys.result(owner, cached_as) if cached_as else keys.job(job_id),
                    keys.images(job_id),
                ],
                args=[
                    job_id,
                    request.model_dump_json(),
                    steps,
                    fingerprint if idempotency_key else "",
                    settings.max_queued,
                    settings.unfinished_ttl_s,
                    _known_ttl(settings),
                    settings.result_ttl_s,
                    keys.job(""),
                    owner,
                ],
                client=pipe,
            )
            await self._index(
                keys=[keys.job(job_id), keys.owned(owner), keys.watched],
                args=[
                    job_id,
                    settings.unfinished_ttl_s + settings.result_ttl_s,
                    int(request.webhook_url is not None),
                ],
                client=pipe,
            )
            (answer, detail), _ = await pipe.execute()
            if settings.durability == "fsync":
                await self._client.waitaof(1, 0, 1000)
        match answer:
            case b"conflict":
                raise IdempotencyConflict(
                    "This Idempotency-Key was used with another request; use a new key for a new request."
                )
            case b"full":
                raise QueueFull(f"{int(detail)} jobs wait for '{request.model}' already.", retry_after_s=10)
        return Accepted(detail.decode(), waits=answer == b"accepted")

    async def has_answer(self, owner: str, idempotency_key: str | None, cached_as: str | None) -> bool:
        """Whether `accept` would find an earlier job to answer with, or a conflict."""
        names = [self._keys.idempotency(owner, idempotency_key)] if idempotency_key else []
        names += [self._keys.result(owner, cached_as)] if cached_as else []
        async with answering():
            return bool(names) and bool(await self._client.exists(*names))

    async def get(self, job_id: str, viewer: str) -> JobRecord:
        """The record, for `viewer`: an owner, or `EVERYONE`.

        Raises:
            JobExpired: it is kept no longer.
            JobNotFound: there never was one, or it is another's: a stranger can't tell which.
        """
        async with answering():
            fields: Any = await self._client.hgetall(self._keys.job(job_id))
            if fields:
                record = decode_record(job_id, fields)
                if record.is_visible_to(viewer):
                    return record
            else:
                owner: Any = await self._client.get(self._keys.known(job_id))
                if owner is not None and viewer in (EVERYONE, owner.decode()):
                    raise JobExpired(f"Job '{job_id}' and its pictures are no longer kept.")
        raise JobNotFound(f"No job '{job_id}'.")

    async def queue_position(self, record: JobRecord) -> int | None:
        """Jobs of the model that start before this one, or `None` once it has started."""
        if record.status is not JobStatus.QUEUED:
            return None
        model, priority = record.request.model, record.request.priority
        async with answering(), self._client.pipeline(transaction=False) as pipe:
            for ahead in PRIORITIES[: PRIORITIES.index(priority)]:
                pipe.zcard(self._keys.queue(model, ahead))
            pipe.zrank(self._keys.queue(model, priority), record.id)
            *ahead_counts, rank = await pipe.execute()
        return None if rank is None else sum(ahead_counts) + rank

    async def happenings(self, job_id: str, *, after: str) -> list[Happening]:
        """The job's events after the one with that id ("0" for all), oldest first, as far as they are kept."""
        async with answering():
            entries: Any = await self._client.xrange(self._keys.events(job_id), f"({after}")
        return [
            Happening(fields[b"event"].decode(), fields[b"data"].decode(), entry.decode()) for entry, fields in entries
        ]

    async def image(self, job_id: str, index: int, viewer: str) -> bytes:
        """PNG bytes of picture `index`.

        Raises:
            ImageNotFound: there is none, or not yet.
            JobExpired, JobNotFound: as `get`.
        """
        png = await self._picture(job_id, str(index), viewer)
        if png is None:
            record = await self.get(job_id, viewer)
            raise ImageNotFound(
                f"Job '{job_id}' has no image {index}: it is {record.status}, with {len(record.image_hashes)} images."
            )
        return png

    async def sheet(self, job_id: str, viewer: str) -> bytes:
        """PNG bytes of a sweep's contact sheet.

        Raises:
            ImageNotFound: the job is no sweep, or not done.
            JobExpired, JobNotFound: as `get`.
        """
        png = await self._picture(job_id, "sheet", viewer)
        if png is None:
            record = await self.get(job_id, viewer)
            raise ImageNotFound(f"Job '{job_id}' has no sheet: it is {record.status}; sweeps have one when done.")
        return png

    async def cancel(self, job_id: str, viewer: str) -> JobRecord:
        """Cancel the job unless it is finished; returns it as it is then.

        Raises:
            JobExpired, JobNotFound: as `get`.
        """
        record = await self.get(job_id, viewer)
        keys, settings = self._keys, self._settings
        async with answering():
            await self._cancel(
                keys=[
                    keys.job(job_id),
                    keys.known(job_id),
                    keys.queue(record.request.model, record.request.priority),
                    keys.leases,
                    keys.events(job_id),
                ],
                args=[job_id, settings.result_ttl_s, _known_ttl(settings), keys.finished],
            )
        return await self.get(job_id, viewer)

    async def _picture(self, job_id: str, name: str, viewer: str) -> bytes | None:
        """The picture, or `None` where there is none for `viewer`. Both are read in one round trip."""
        async with answering(), self._client.pipeline(transaction=False) as pipe:
            pipe.hget(self._keys.job(job_id), "owner")
            pipe.hget(self._keys.images(job_id), name)
            owner, png = await pipe.execute()
        return png if viewer in (EVERYONE, (owner or ANONYMOUS.encode()).decode()) else None


class WorkerStore:
    """The workers' face: claim, keep, finish, give back. Thread-safe; raises `redis.RedisError`."""

    def __init__(self, settings: StoreSettings) -> None:
        self._client = redis.Redis.from_url(settings.redis_url, client_name="cynosure-worker")
        self._settings = settings
        self._keys = Keys(settings.key_prefix)
        self._claim, self._heartbeat, self._finish, self._release = (
            self._client.register_script(_SCRIPTS[name]) for name in ("claim", "heartbeat", "finish", "release")
        )

    def claim(self, job_id: str, worker: str) -> Claim | None:
        """Take a queued job, or `None` where it is not queued (any more)."""
        read: Any = self._client.hmget(self._keys.job(job_id), ["request", "owner"])
        raw, owner = read
        if raw is None:
            return None
        request = ResolvedRequest.model_validate_json(raw)
        attempt = self._claim(
            keys=[
                self._keys.job(job_id),
                self._keys.queue(request.model, request.priority),
                self._keys.leases,
                self._keys.events(job_id),
            ],
            args=[
                job_id,
                worker,
                self._lease_ms,
                self._keys.moved,
                self._settings.unfinished_ttl_s,
                MAX_EVENTS,
            ],
        )
        return Claim(job_id, attempt, request, (owner or ANONYMOUS.encode()).decode()) if attempt else None

    def heartbeat(self, held: Mapping[str, Beat]) -> dict[str, Verdict]:
        """Renew the leases of these jobs, and write what happened to them, in one round trip."""
        pipe = self._client.pipeline(transaction=False)
        for job_id, beat in held.items():
            self._heartbeat(
                keys=[self._keys.job(job_id), self._keys.leases, self._keys.events(job_id)],
                args=[
                    job_id,
                    beat.attempt,
                    beat.step,
                    self._lease_ms,
                    beat.steps,
                    self._keys.moved,
                    self._settings.unfinished_ttl_s,
                    MAX_EVENTS,
                    *(part for happening in beat.happenings for part in (happening.name, happening.data)),
                ],
                client=pipe,
            )
        return {job_id: Verdict(answer.decode()) for job_id, answer in zip(held, pipe.execute(), strict=True)}

    def finish(self, claim: Claim, made: Finished) -> bool:
        """Write the pictures and the end; `False` where the claim is stale."""
        return self._end(claim, JobStatus.SUCCEEDED, "", made)

    def fail(self, claim: Claim, error: JobError) -> bool:
        """End the job with an error; `False` where the claim is stale."""
        nothing = Finished(pictures=(), reproducible=False, digest="")
        return self._end(claim, JobStatus.FAILED, error.model_dump_json(), nothing)

    def release(self, claim: Claim) -> bool:
        """Hand the job back to the queue; `False` where it was not ours any more."""
        return self._give_back(claim.job_id, claim.request, str(claim.attempt)) == b"queued"

    def expired_leases(self, limit: int = 256) -> list[str]:
        """Ids whose worker has been silent for longer than a lease."""
        seconds, microseconds = self._client.time()
        now = seconds * 1000 + microseconds // 1000
        ids: list[Any] = list(self._client.zrangebyscore(self._keys.leases, "-inf", now, 0, limit))
        return [raw.decode() for raw in ids]

    def reclaim(self, job_id: str) -> tuple[str, ResolvedRequest | None]:
        """Take a job from its silent worker: ("queued" | "failed" | "kept", its request)."""
        raw = self._client.hget(self._keys.job(job_id), "request")
        if raw is None:
            self._client.zrem(self._keys.leases, job_id)
            return "kept", None
        request = ResolvedRequest.model_validate_json(raw)
        return self._give_back(job_id, request, "").decode(), request

    def stale_queued(self, model: str, *, older_than_s: float, limit: int) -> list[tuple[str, Priority]]:
        """Queued jobs of `model` that have waited for longer, first come first; entries that outlived theirs go."""
        seconds, microseconds = self._client.time()
        before = seconds * 1_000_000 + microseconds - int(older_than_s * 1_000_000)
        found: list[tuple[str, Priority]] = []
        for priority in PRIORITIES:
            queue = self._keys.queue(model, priority)
            ids: list[Any] = list(self._client.zrangebyscore(queue, "-inf", before, 0, limit))
            for job_id in (raw.decode() for raw in ids):
                if self._client.exists(self._keys.job(job_id)):
                    found.append((job_id, priority))
                else:
                    self._client.zrem(queue, job_id)
        return found[:limit]

    def try_reaper_lock(self, *, ttl_s: float) -> bool:
        """Whether this worker is the one to look for lost jobs now."""
        return bool(self._client.set(self._keys.reaper, "1", nx=True, px=max(1, int(ttl_s * 1000))))

    @property
    def _lease_ms(self) -> int:
        return int(self._settings.lease_s * 1000)

    def _end(self, claim: Claim, status: JobStatus, error: str, made: Finished) -> bool:
        keys, settings, job_id = self._keys, self._settings, claim.job_id
        answer = self._finish(
            keys=[
                keys.job(job_id),
                keys.images(job_id),
                keys.known(job_id),
                keys.leases,
                keys.result(claim.owner, result_key(claim.request, made.digest)),
                keys.events(job_id),
            ],
            args=[
                job_id,
                claim.attempt,
                status.value,
                error,
                json.dumps(made.hashes),
                settings.result_ttl_s,
                _known_ttl(settings),
                keys.finished,
                int(made.reproducible),
                made.sheet or b"",
                json.dumps(made.telemetry) if made.telemetry else "",
                *made.pictures,
            ],
        )
        return bool(answer == b"moved")

    def _give_back(self, job_id: str, request: ResolvedRequest, attempt: str) -> Any:
        keys, settings = self._keys, self._settings
        return self._release(
            keys=[
                keys.job(job_id),
                keys.known(job_id),
                keys.queue(request.model, request.priority),
                keys.leases,
                keys.events(job_id),
            ],
            args=[
                job_id,
                attempt,
                settings.max_attempts,
                _EXHAUSTED,
                settings.unfinished_ttl_s,
                settings.result_ttl_s,
                _known_ttl(settings),
                keys.finished,
                keys.moved,
                MAX_EVENTS,
            ],
        )
