"""Feeding batches: their lines become jobs as there is room, so that a batch fills neither the queue nor memory."""

from __future__ import annotations

import asyncio
import logging

from fastapi.concurrency import run_in_threadpool

from app.gateway.state import State
from app.gateway.submission import accept
from cynosure.batches import BatchStatus
from cynosure.errors import BatchNotFound, ModelLeaving, QueueFull, QuotaExceeded, StoreUnavailable
from jobs.accounts.api_keys import Caller, Scope
from jobs.batches import BatchRecord, Line
from jobs.queue.record import EVERYONE, Submission

log = logging.getLogger(__name__)

WINDOW = 256
"""Jobs of one batch that are queued or running at a time: several times what a worker's engine holds at once."""
LOOK_S = 0.5
_LOCK_S = 30.0  # a window of jobs takes about a second to post
_LINES_AT_ONCE = 16  # if the first of them is refused, few were read in vain


class Feeder:
    """Each gateway has one; a lock for each batch lets only one feeder at a time work on it."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def run(self) -> None:
        """Feed until cancelled; failures are retried at the next pass."""
        while True:
            try:
                await self._pass()
            except StoreUnavailable as error:
                log.warning("feeding batches is paused: %s", error)
            except Exception:
                log.exception("feeding batches failed; trying again")
            await asyncio.sleep(LOOK_S)

    async def _pass(self) -> None:
        """Feed every batch once; a batch that fails does not block the others."""
        for batch_id in await self._state["store"].batches.running():
            try:
                await self._tend(batch_id)
            except StoreUnavailable:  # it would fail for every batch
                raise
            except Exception:
                log.exception("feeding a batch failed; trying again", extra={"batch": batch_id})

    async def _tend(self, batch_id: str) -> None:
        batches = self._state["store"].batches
        async with batches.feeding(batch_id, ttl_s=_LOCK_S) as is_mine:
            if not is_mine:
                return
            try:
                record = await batches.look(batch_id, EVERYONE)
                if record.status is BatchStatus.RUNNING:
                    await self._feed(record)
            except BatchNotFound:
                await batches.forget(batch_id)
            except ModelLeaving as error:
                if not error.waits:
                    log.info("cancelling a batch: %s", error, extra={"batch": batch_id})
                    await batches.cancel(batch_id)
            except (QueueFull, QuotaExceeded):
                pass  # the queue is full or the key's daily quota used up: there will be room later

    async def _feed(self, record: BatchRecord) -> None:
        """Make jobs of the next lines. An idempotency key keeps a line from becoming two jobs."""
        state, room = self._state, min(WINDOW - record.open, record.total - record.fed)
        if room <= 0:
            return
        caller = await state["store"].api_keys.caller_of(record.owner)
        if caller is None or not caller.may(Scope.SUBMIT):
            log.info("cancelling a batch: its API key is no longer valid", extra={"batch": record.id})
            await state["store"].batches.cancel(record.id)
            return
        end = record.fed + room
        for first in range(record.fed, end, _LINES_AT_ONCE):
            lines = await state["store"].batches.lines(record.id, first, min(_LINES_AT_ONCE, end - first))
            for index, line in enumerate(lines, start=first):
                if not await self._post(caller, record.id, index, line):
                    return

    async def _post(self, caller: Caller, batch_id: str, index: int, line: Line) -> bool:
        """Make a job of the line; `False` if the batch takes no more."""
        submission = await run_in_threadpool(
            Submission.of,
            line.request,
            cached_as=line.cached_as,
            idempotency_key=f"batch\n{batch_id}\n{index}",  # no client can send this key: headers have no line breaks
            fingerprint=line.digest,
        )
        job_id = (await accept(self._state, caller, submission, "batches")).id
        is_wanted = await self._state["store"].batches.fed(batch_id, index, job_id)
        if not is_wanted:
            await self._state["store"].jobs.cancel(job_id, EVERYONE)
        return is_wanted
