"""Feeding batches: their lines become jobs as there is room, so that one batch fills neither queue nor memory."""

from __future__ import annotations

import asyncio
import logging

from fastapi.concurrency import run_in_threadpool

from app.gateway.state import State
from app.gateway.submission import accept
from cynosure.batches import BatchStatus
from cynosure.errors import BatchNotFound, QueueFull, QuotaExceeded, StoreUnavailable
from jobs.accounts.api_keys import Caller, Scope
from jobs.batches import BatchRecord, Line
from jobs.queue.record import EVERYONE, Submission

log = logging.getLogger(__name__)

WINDOW = 256
"""Jobs of one batch that are queued or running at a time: several times what a worker's engine holds at once."""
LOOK_S = 0.5
_LOCK_S = 30.0  # a window of jobs takes about a second to post
_LINES_AT_ONCE = 16  # few are read in vain where the first of them is refused


class Feeder:
    """One a gateway; a lock for each batch lets one of them feed it at a time."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def run(self) -> None:
        """Feed until cancelled; what goes wrong is tried again at the next look."""
        while True:
            try:
                await self._pass()
            except StoreUnavailable as error:
                log.warning("batches wait: %s", error)
            except Exception:
                log.exception("feeding failed, trying again")
            await asyncio.sleep(LOOK_S)

    async def _pass(self) -> None:
        """Tend every batch once; one that fails keeps none of the others waiting."""
        for batch_id in await self._state["store"].batches.running():
            try:
                await self._tend(batch_id)
            except StoreUnavailable:  # no other batch would fare better
                raise
            except Exception:
                log.exception("batch %s could not be fed, trying again", batch_id)

    async def _tend(self, batch_id: str) -> None:
        batches = self._state["store"].batches
        if not await batches.try_lock(batch_id, ttl_s=_LOCK_S):
            return
        try:
            record = await batches.look(batch_id, EVERYONE)
            if record.status is BatchStatus.RUNNING:
                await self._feed(record)
        except BatchNotFound:
            await batches.forget(batch_id)
        except (QueueFull, QuotaExceeded):
            pass  # others have filled the queue, or the key's day is used up: there is room later
        finally:
            await batches.unlock(batch_id)

    async def _feed(self, record: BatchRecord) -> None:
        """Make jobs of the next lines. Each has an idempotency key, so that a line never becomes two."""
        state, room = self._state, min(WINDOW - record.open, record.total - record.fed)
        if room <= 0:
            return
        caller = await state["store"].api_keys.caller_of(record.owner)
        if caller is None or not caller.may(Scope.SUBMIT):
            log.info("batch %s is cancelled: its API key is no longer valid", record.id)
            await state["store"].batches.cancel(record.id)
            return
        end = record.fed + room
        for first in range(record.fed, end, _LINES_AT_ONCE):
            lines = await state["store"].batches.lines(record.id, first, min(_LINES_AT_ONCE, end - first))
            for index, line in enumerate(lines, start=first):
                if not await self._post(caller, record.id, index, line):
                    return

    async def _post(self, caller: Caller, batch_id: str, index: int, line: Line) -> bool:
        """Make the line a job; `False` where the batch wants no more."""
        submission = await run_in_threadpool(
            Submission.of,
            line.request,
            cached_as=line.cached_as,
            idempotency_key=f"batch\n{batch_id}\n{index}",  # no header can have a line break: it is no client's key
            fingerprint=line.digest,
        )
        job_id = await accept(self._state, caller, submission)
        is_wanted = await self._state["store"].batches.fed(batch_id, index, job_id)
        if not is_wanted:
            await self._state["store"].jobs.cancel(job_id, EVERYONE)
        return is_wanted
