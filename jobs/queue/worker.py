"""The store as workers use it: claim jobs, keep their leases, finish them or give them back."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from redis.exceptions import NoScriptError, OutOfMemoryError

from cynosure.contract import JobError, JobStatus, ResolvedRequest
from cynosure.errors import InvalidRequest
from cynosure.resolving import attached, detached, result_key
from jobs.metrics import WorkerMetrics
from jobs.pictures.opening import pictures_of
from jobs.queue.ended import log_end, log_unreadable
from jobs.queue.events import Endings
from jobs.queue.record import Beat, Claim, Ended, Finished, NoClaim, Origin, Outcome, Verdict
from jobs.settings import StoreSettings
from jobs.store.connection import TIMEOUT_S, connect
from jobs.store.keyspace import Keys
from jobs.store.scripts import MAX_ATTEMPTS_KEPT, MAX_EVENTS, call_of, known_ttl_s, queue_args, script

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 60.0
MAX_REAPER_LOCK_MS = 60_000  # longer than any worker's interval
Kept = Mapping[str, bytes]
"""What the record holds of each picture, by name."""
_LOST = JobError(code="worker_lost", message="The worker that drew this job stopped sending heartbeats.")
_UNREADABLE = JobError(code="unreadable_request", message="The worker's version can't read this request.")


def backoff_s(attempt: int) -> float:
    """Seconds before a job is tried again after a fault that may pass."""
    return min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (attempt - 1))


class WorkerStore:
    """Jobs, for workers. Thread-safe; raises `redis.RedisError`, and `StorageUnavailable` if pictures can't be kept.

    Every call is idempotent.

    Attributes:
        metrics: count what becomes of the jobs.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self.metrics = WorkerMetrics()
        self._client = connect(settings, "cynosure-worker", observe=self.metrics.store_answered)
        self._settings = settings
        self._places = pictures_of(settings, self.metrics)
        self._keys = Keys(settings.key_prefix)
        self._claim, self._keep_quarantine, self._heartbeat, self._tell, self._finish, self._requeue = (
            self._client.register_script(script(name))
            for name in ("claim", "keep_quarantine", "heartbeat", "tell", "finish", "requeue")
        )

    def ping(self) -> None:
        self._client.ping()

    @contextmanager
    def endings(self) -> Iterator[Endings]:
        """Subscribe to the ends of all jobs from now on."""
        with self._client.pubsub(ignore_subscribe_messages=True) as subscription:  # type: ignore[no-untyped-call]
            subscription.subscribe(self._keys.finished)
            subscription.get_message(timeout=TIMEOUT_S)  # the confirmation of the subscription
            yield Endings(subscription)

    def claim(self, model: str, worker: str, *, held: int, suspects: bool = False) -> Claim | NoClaim:
        """Claim the model's next job for a worker that holds `held` jobs, which are all suspects if `suspects`.

        A job whose request this version can't read is given back, and any worker may take it after a back-off.
        """
        keys, token, asked_at = self._keys, secrets.token_hex(8), time.monotonic()
        reply = self._claim(
            keys=[*keys.places(model), keys.leases, keys.moved, keys.quarantine(model), keys.claim(token)],
            args=[
                *queue_args(keys, self._settings),
                worker,
                token,
                held,
                self._lease_ms,
                int(self._settings.priority_ageing_s * 1000),
                MAX_ATTEMPTS_KEPT,
                MAX_EVENTS,
                int(suspects),
            ],
        )
        if reply[0] != b"claimed":
            return NoClaim(reply[0].decode())
        _, job_id, attempt, request, owner, most_held, origin, waited_ms = reply
        self.metrics.job_taken(attempt=attempt, waited_s=waited_ms / 1000)
        try:
            claim = Claim(
                job_id.decode(),
                attempt,
                ResolvedRequest.model_validate_json(request),
                owner.decode(),
                most_held=most_held or None,  # the script returns 0 for an ordinary job
                origin=Origin.decoded(origin.decode()),
                waited_s=waited_ms / 1000,
                asked_at=asked_at,
                given_at=time.monotonic(),
            )
        except ValidationError as error:  # from a newer version, during a rolling upgrade
            log_unreadable(job_id.decode(), error)
            self._give_back(job_id.decode(), model, str(attempt), Outcome.FAULTED, _UNREADABLE, backoff_s(attempt))
            return NoClaim.NOTHING
        return self._with_inputs(claim)

    def _with_inputs(self, claim: Claim) -> Claim | NoClaim:
        """The claim with the pictures of its request; if they are gone, the job fails."""
        if not claim.request.inputs:
            return claim
        fields: Any = self._client.hgetall(self._keys.inputs(claim.job_id))
        pictures = {name.decode(): picture.decode() for name, picture in fields.items()}
        try:
            return replace(claim, request=attached(claim.request, pictures))
        except InvalidRequest as error:
            self.fail(claim, JobError(code=error.code, message=error.detail))
            return NoClaim.NOTHING

    def keep_quarantine(self, model: str, worker: str) -> bool:
        """Renew the quarantine, in which the worker empties itself for a suspect; `False` if it is no longer needed."""
        keys = [self._keys.quarantine(model), self._keys.suspects(model)]
        return bool(self._keep_quarantine(keys=keys, args=[worker, self._lease_ms]))

    def heartbeat(self, held: Mapping[str, Beat]) -> dict[str, Verdict]:
        """Renew the leases of these jobs, and write their news."""
        pipe = self._client.pipeline(transaction=False)
        for job_id, beat in held.items():
            keys = [self._keys.job(job_id), self._keys.leases]
            args: list[str | int] = [job_id, beat.attempt, beat.evaluations_done, self._lease_ms, beat.evaluations]
            pipe.evalsha(*call_of(self._heartbeat, keys, args))
        for job_id, beat in held.items():
            if beat.happenings:
                self._write_news(job_id, beat, pipe)
        sent_at = time.perf_counter()
        answers = pipe.execute(raise_on_error=False)
        self.metrics.store_answered("heartbeat", time.perf_counter() - sent_at)
        if any(isinstance(answer, NoScriptError) for answer in answers):  # the store was restarted, or is another one
            for missing in (self._heartbeat, self._tell):
                self._client.script_load(missing.script)
            return self.heartbeat(held)
        for answer in answers:
            # At the memory limit leases are still renewed, and the news is dropped.
            if isinstance(answer, Exception) and not isinstance(answer, OutOfMemoryError):
                raise answer
        return {job_id: Verdict(answer.decode()) for job_id, answer in zip(held, answers, strict=False)}

    def keep(self, claim: Claim, made: Finished) -> Kept:
        """Store the pictures of this attempt, for `finish`.

        Raises:
            StorageUnavailable: not all of them are stored.
        """
        pngs = {str(index): png for index, png in enumerate(made.pictures)}
        return self._places.keep(claim.job_id, claim.attempt, pngs | ({"sheet": made.sheet} if made.sheet else {}))

    def finish(self, claim: Claim, made: Finished, kept: Kept | None = None) -> Ended | None:
        """End the job with its pictures, which `keep` has stored, or this does; `None` if the claim is stale."""
        ended = self._end(claim, JobStatus.SUCCEEDED, None, made, self.keep(claim, made) if kept is None else kept)
        if ended is None:
            self._places.drop(claim.job_id, claim.attempt)
        return ended

    def fail(self, claim: Claim, error: JobError) -> Ended | None:
        """End the job with an error; `None` if the claim is stale."""
        nothing = Finished(pictures=(), reproducible=False, digests=())
        return self._end(claim, JobStatus.FAILED, error, nothing, {})

    def release(self, claim: Claim, outcome: Outcome, why: JobError | None = None) -> bool:
        """Give the job back to the queue; `False` if that did not queue it: the claim is stale, or the job has failed.

        A job handed back in good order can be claimed at once, and one given back after a fault after a back-off.
        """
        delay_s = backoff_s(claim.attempt) if outcome is Outcome.FAULTED else 0.0
        return self._give_back(claim.job_id, claim.request.model, str(claim.attempt), outcome, why, delay_s) == "queued"

    def mend_times(self, models: Sequence[str]) -> None:
        """Bring back times that are further ahead than any can be set: the store's clock was set back."""
        now_ms = self._now_ms()
        latest_lease = now_ms + 2 * self._lease_ms  # other workers' leases may be a little longer
        latest_retry = now_ms + LONGEST_BACKOFF_S * 1000
        with self._client.pipeline(transaction=False) as pipe:
            pipe.zrangebyscore(self._keys.leases, f"({latest_lease}", "+inf")
            for model in models:
                pipe.zrangebyscore(self._keys.delayed(model), f"({latest_retry:.0f}", "+inf")
                pipe.pttl(self._keys.quarantine(model))
            leases, *of_models = pipe.execute()
            delayed, quarantines = of_models[::2], of_models[1::2]
            for job_id in leases:
                pipe.zadd(self._keys.leases, {job_id: now_ms + self._lease_ms}, xx=True, lt=True)
            for model, late in zip(models, delayed, strict=True):
                for job_id in late:
                    pipe.zadd(self._keys.delayed(model), {job_id: now_ms}, xx=True, lt=True)
            for model, left_ms in zip(models, quarantines, strict=True):
                if left_ms > 2 * self._lease_ms:
                    pipe.delete(self._keys.quarantine(model))
            pipe.execute()

    def expired_leases(self, limit: int = 256) -> list[str]:
        """Ids of jobs whose lease has expired."""
        ids: list[Any] = list(self._client.zrangebyscore(self._keys.leases, "-inf", self._now_ms(), 0, limit))
        return [raw.decode() for raw in ids]

    def reclaim(self, job_id: str) -> tuple[str, str | None]:
        """Take back a job whose lease has expired: ("queued" | "failed" | "kept", its model)."""
        raw = self._client.hget(self._keys.job(job_id), "request")
        if raw is None:
            self._client.zrem(self._keys.leases, job_id)
            return "kept", None
        model: str = json.loads(raw)["model"]  # the rest may be unreadable: from a newer version
        result = self._give_back(job_id, model, "", Outcome.LOST, _LOST, 0.0)
        if result != "kept":
            self.metrics.lease_expired()
        return result, model

    def due(self, model: str, *, waiting_s: float) -> int:
        """Number of jobs of `model` that can be claimed and have waited for longer than `waiting_s`."""
        keys, now_ms = self._keys, self._now_ms()
        with self._client.pipeline(transaction=False) as pipe:
            for queue in keys.queues(model):
                pipe.zcount(queue, "-inf", (now_ms - waiting_s * 1000) * 1000)
            pipe.zcount(keys.delayed(model), "-inf", now_ms)
            pipe.zcard(keys.suspects(model))
            return sum(pipe.execute())

    def try_reaper_lock(self, *, ttl_s: float) -> bool:
        """Try to become the one worker that looks for lost jobs now; `True` if this call took the lock."""
        ttl_ms = max(1, int(ttl_s * 1000))
        if self._client.set(self._keys.reaper, "1", nx=True, px=ttl_ms):
            return True
        if self._client.pttl(self._keys.reaper) > max(10 * ttl_ms, MAX_REAPER_LOCK_MS):
            self._client.delete(self._keys.reaper)  # the clock was set back, and the lock would last as long
        return False

    @property
    def _lease_ms(self) -> int:
        return int(self._settings.lease_s * 1000)

    def _now_ms(self) -> int:
        seconds, microseconds = self._client.time()
        return int(seconds * 1000 + microseconds // 1000)

    def _write_news(self, job_id: str, beat: Beat, pipe: Any) -> None:
        keys, ttl_s = [self._keys.job(job_id), self._keys.events(job_id)], self._settings.unfinished_ttl_s
        news = (part for happening in beat.happenings for part in (happening.name, happening.data))
        args: list[str | int] = [job_id, beat.attempt, beat.sequence, self._keys.moved, ttl_s, MAX_EVENTS, *news]
        pipe.evalsha(*call_of(self._tell, keys, args))

    def _end(self, claim: Claim, status: JobStatus, error: JobError | None, made: Finished, kept: Kept) -> Ended | None:
        keys, settings, job_id = self._keys, self._settings, claim.job_id
        answer, *rest = self._finish(
            keys=[
                *keys.places(claim.request.model),
                keys.images(job_id),
                keys.known(job_id),
                keys.leases,
                keys.result(claim.owner, result_key(detached(claim.request)[0].model_dump(mode="json"), *made.digests)),
                keys.events(job_id),
                keys.finished,
                keys.recent(claim.request.model),
            ],
            args=[
                *queue_args(keys, settings),
                job_id,
                claim.attempt,
                status.value,
                error.model_dump_json() if error else "",
                json.dumps(made.hashes),
                settings.result_ttl_s,
                known_ttl_s(settings),
                int(made.reproducible),
                kept.get("sheet", b""),
                json.dumps(made.telemetry) if made.telemetry else "",
                json.dumps(made.warnings) if made.warnings else "",
                made.flagged_json,
                *(kept[str(index)] for index in range(len(made.pictures))),
            ],
        )
        if answer != b"moved":
            self.metrics.attempt_ended(Verdict(answer.decode()))
            return None
        ending, waiting = rest
        log_end(job_id, claim.request.model, ending)
        self.metrics.attempt_ended(status)
        self.metrics.job_finished(claim.request.model, status, error.code if error else "")
        if status is JobStatus.SUCCEEDED:
            self.metrics.job_drawn(claim.request.model, pictures=len(made.pictures), taken_at=claim.given_at)
        return Ended(none_waits=waiting == 0)

    def _give_back(
        self, job_id: str, model: str, attempt: str, outcome: Outcome, why: JobError | None, delay_s: float
    ) -> str:
        keys, settings = self._keys, self._settings
        reason = f"; the last one: {why.message}" if why else "."
        exhausted = JobError(
            code="attempts_exhausted",
            message=f"All {settings.max_attempts} attempts failed{reason}",
        )
        answer, *ending = self._requeue(
            keys=[
                *keys.places(model),
                keys.known(job_id),
                keys.leases,
                keys.events(job_id),
                keys.finished,
                keys.moved,
            ],
            args=[
                *queue_args(keys, settings),
                job_id,
                attempt,
                outcome.value,
                why.model_dump_json() if why else "",
                int(delay_s * 1000),
                settings.max_attempts,
                exhausted.model_dump_json(),
                settings.result_ttl_s,
                known_ttl_s(settings),
                MAX_EVENTS,
            ],
        )
        for fields in ending:
            log_end(job_id, model, fields)
        result = str(answer.decode())
        if result != "kept":
            self.metrics.attempt_ended(outcome)
        if result == "failed":
            self.metrics.job_finished(model, JobStatus.FAILED, exhausted.code)
        return result
