"""The store as the gateway uses it: accept, read and cancel jobs."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio

from cynosure.contract import JobStatus
from cynosure.errors import IdempotencyConflict, ModelLeaving, QueueFull
from jobs.metrics import Metrics
from jobs.queue.doorbell import MOST_BELLS, bell_for, bells_of
from jobs.queue.ended import log_end
from jobs.queue.pace import Pace, Seen
from jobs.queue.reading import JobReader, seen_in
from jobs.queue.record import ANONYMOUS, JobRecord, Submission
from jobs.settings import StoreSettings
from jobs.store.answering import answering
from jobs.store.keyspace import PRIORITIES
from jobs.store.scripts import known_ttl_s, queue_args, script


@dataclass(frozen=True)
class Accepted:
    """An accepted job; `waits` is false if an earlier request made it or an earlier result answers it: `is_cached`.

    `seen` is how it was then; `None` if that must be asked for.
    """

    id: str
    waits: bool
    is_cached: bool
    seen: Seen | None = None


class JobStore(JobReader):
    """Jobs, for the gateway. Every method raises `StoreUnavailable` if Redis is away.

    `metrics` count the jobs that it cancels.
    """

    def __init__(self, client: redis.asyncio.Redis, settings: StoreSettings, metrics: Metrics | None = None) -> None:
        self._metrics = metrics or Metrics()
        super().__init__(client, settings, self._metrics)
        self._accept, self._cancel = (client.register_script(script(name)) for name in ("accept", "cancel"))

    async def ping(self) -> None:
        async with answering():
            await self._client.ping()

    async def accept(
        self, job_id: str, submission: Submission, *, owner: str, evaluations: int, of_batch: bool = False
    ) -> Accepted:
        """Write the record, its inputs, the queue entry and the idempotency key, all or nothing.

        If `cached_as` is the `result_key` of a job of the same owner that has succeeded, the new job gets its pictures
        at once. Cached results and idempotency keys belong to one owner, so they reveal nothing to another.

        Raises:
            IdempotencyConflict: the key was used with another request.
            ModelLeaving: the model, or the guide, is being unloaded. One that finishes its jobs first takes those
                `of_batch`, which were accepted with their batch.
            QueueFull: the model's queue, or the owner's share of all queues, is at its limit.
            StoreFull, StoreUnavailable: the job is not accepted, as far as is known.
        """
        copied = await self._copied(job_id, owner, submission.cached_as)
        arguments = self._arguments(job_id, submission, owner, copied, evaluations=evaluations, of_batch=of_batch)
        async with answering():
            # Both go to the store together, in this order.
            answers: Any = await asyncio.gather(
                self._accepting(self._accept, keys=self._places(job_id, submission, owner), args=arguments),
                self._looking(job_id),
                return_exceptions=True,
            )
            accepted, found = answers
            if isinstance(accepted, BaseException):
                raise accepted
        answer, detail, *ending = accepted
        if any(copied) and (answer, detail) != (b"cached", job_id.encode()):
            await asyncio.to_thread(self.places.drop, job_id, 0)
        seen = None if isinstance(found, BaseException) else seen_in(job_id, found)
        return await self._outcome(submission.request.model, answer, detail, ending, seen)

    def _places(self, job_id: str, submission: Submission, owner: str) -> list[str]:
        """The keys of `accept.lua`."""
        keys, model, key = self._keys, submission.request.model, submission.idempotency_key
        return [
            *keys.places(model),
            keys.job(job_id),
            keys.known(job_id),
            keys.images(job_id),
            keys.inputs(job_id),
            keys.waits(owner),
            keys.owned(owner),
            keys.watched,
            keys.models_leaving,
            bells_of(self._settings, model),
            *([keys.idempotency(owner, key)] if key is not None else []),
            *([keys.result(owner, submission.cached_as)] if submission.cached_as is not None else []),
        ]

    def _arguments(
        self,
        job_id: str,
        submission: Submission,
        owner: str,
        copied: tuple[str, str],
        *,
        evaluations: int,
        of_batch: bool,
    ) -> list[str | int]:
        """The arguments of `accept.lua`."""
        settings, request = self._settings, submission.request
        return [
            *queue_args(self._keys, settings),
            job_id,
            submission.encoded(),
            evaluations,
            submission.fingerprint,
            settings.max_queued,
            settings.max_queued if owner == ANONYMOUS else settings.max_queued_per_key,
            known_ttl_s(settings),
            settings.result_ttl_s,
            owner,
            request.priority.value,
            int(request.webhook_url is not None),
            int(submission.idempotency_key is not None),
            int(submission.cached_as is not None),
            int(of_batch),
            request.model,
            request.guide_model or "",
            submission.origin.encoded(),
            *copied,
            bell_for(request.model, job_id),
            MOST_BELLS,
            *(part for named in submission.inputs.items() for part in named),
        ]

    async def _outcome(
        self, model: str, answer: bytes, detail: bytes, ending: Sequence[Any], seen: Seen | None
    ) -> Accepted:
        """The accepted job, or the error of `accept`; a job that has ended already is logged."""
        for fields in ending:
            log_end(detail.decode(), model, fields)
        match answer:
            case b"conflict":
                raise IdempotencyConflict(
                    "This Idempotency-Key was used with another request; use a new key for a new request."
                )
            case b"leaving" | b"away":
                error = ModelLeaving(f"'{detail.decode()}' is being unloaded, so it takes no new jobs.", field="model")
                error.waits = answer == b"away"
                raise error
            case b"full" | b"owner_full":
                raise await self._queue_full(model, int(detail), of_owner=answer == b"owner_full")
        accepted_id = detail.decode()
        return Accepted(
            accepted_id,
            waits=answer == b"accepted",
            is_cached=answer == b"cached",
            seen=seen if seen is not None and seen.record.id == accepted_id else None,
        )

    async def _copied(self, job_id: str, owner: str, cached_as: str | None) -> tuple[str, str]:
        """The earlier job that has the result, and copies of its pictures for this one; empty if none are needed.

        They are empty, too, if the pictures are gone or can't be copied now: then `accept` has them drawn again.
        """
        if cached_as is None or not self.places.copies:
            return "", ""
        async with answering():
            found: Any = await self._client.get(self._keys.result(owner, cached_as))
            if found is None:
                return "", ""
            fields: Any = await self._client.hgetall(self._keys.images(found.decode()))
        copies = await self.places.copied({name.decode(): kept for name, kept in fields.items()}, job_id)
        if copies is None:
            return "", ""
        return found.decode(), json.dumps({name: kept.decode() for name, kept in copies.items()})

    async def has_answer(self, owner: str, idempotency_key: str | None, cached_as: str | None) -> bool:
        """Whether `accept` would find an earlier job to answer with, or a conflict."""
        names = [self._keys.idempotency(owner, idempotency_key)] if idempotency_key is not None else []
        names += [self._keys.result(owner, cached_as)] if cached_as else []
        async with answering():
            return bool(names) and bool(await self._client.exists(*names))

    async def _queue_full(self, model: str, waiting: int, *, of_owner: bool) -> QueueFull:
        """The error; its `retry_after_s` is the time for a tenth of the waiting jobs, which makes room for several."""
        async with answering(), self._client.pipeline(transaction=False) as pipe:
            pipe.hgetall(self._keys.pace(model))
            for priority in PRIORITIES:
                pipe.zcard(self._keys.owners(model, priority))
            pace, *owners = await pipe.execute()
        shares = max(1, *owners) if of_owner else 1
        retry_after_s = Pace.of(pace).seconds_for(max(1, math.ceil(waiting / 10)) * shares)
        whose = "of your jobs are already waiting" if of_owner else f"jobs are already waiting for '{model}'"
        return QueueFull(f"{waiting} {whose}.", retry_after_s=retry_after_s)

    async def cancel(self, job_id: str, viewer: str) -> JobRecord:
        """Cancel the job unless it has ended; returns its record after that.

        Raises:
            JobExpired, JobNotFound: as `get`.
        """
        record = await self.get(job_id, viewer)
        keys, settings = self._keys, self._settings
        async with answering():
            answer, *ending = await self._cancel(
                keys=[
                    *keys.places(record.request.model),
                    keys.known(job_id),
                    keys.leases,
                    keys.events(job_id),
                    keys.finished,
                ],
                args=[*queue_args(keys, settings), job_id, settings.result_ttl_s, known_ttl_s(settings)],
            )
        if answer == b"moved":
            self._metrics.job_finished(record.request.model, JobStatus.CANCELLED)
        for fields in ending:
            log_end(job_id, record.request.model, fields)
        return await self.get(job_id, viewer)

    async def erase(self, job_id: str, viewer: str) -> JobRecord:
        """Cancel the job unless it has ended, and delete it with its pictures, and what a webhook has yet to be sent.

        Afterwards it is as expired. Returns its last record.

        Raises:
            JobExpired, JobNotFound: as `get`.
            StorageUnavailable: some of its pictures may be left, and so is the record; another call goes on.
        """
        record = await self.cancel(job_id, viewer)
        await self.places.erase(job_id)
        keys = self._keys
        async with answering(), self._client.pipeline() as pipe:
            pipe.delete(*(key(job_id) for key in (keys.job, keys.images, keys.inputs, keys.events, keys.webhook)))
            for place in (keys.owned(record.owner), keys.watched, keys.webhooks_due):
                pipe.zrem(place, job_id)
            await pipe.execute()
        return record
