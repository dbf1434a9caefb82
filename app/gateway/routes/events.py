"""GET /jobs/{id}/events."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app.gateway.addresses import AddressDep
from app.gateway.answers import POLL_S
from app.gateway.door.auth import Reader
from app.gateway.shaping import job_of
from app.gateway.state import StateDep
from cynosure.contract import JobStatus, Problem
from cynosure.errors import JobExpired, JobNotFound, StoreUnavailable
from jobs.queue.pace import Outlook
from jobs.queue.record import JobRecord

router = APIRouter(prefix="/jobs", tags=["jobs"], responses={410: {"model": Problem}})


async def _known(job_id: str, state: StateDep, caller: Reader) -> JobRecord:
    """Look the job up before the answer starts, so that an unknown id is a 404 and not an empty stream."""
    return await state["store"].jobs.get(job_id, caller.sees)


@router.get("/{job_id}/events", summary="Follow a job", response_class=EventSourceResponse)
async def follow(
    record: Annotated[JobRecord, Depends(_known)],
    state: StateDep,
    caller: Reader,
    address: AddressDep,
    last_event_id: Annotated[str | None, Header(description="Resume after this event.")] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events until the job ends.

    `status`: the job, first at once, then when its queue position changes and when a worker takes it or gives it back.
    `progress`: evaluations done, with telemetry of the guidance if the job requests it. `preview`: a small PNG of the
    guided prediction, if the job requests previews. `done`: the job as it ended; the stream ends with it. A client
    that was cut off resumes with `Last-Event-ID`.
    """
    store, job_id = state["store"], record.id
    seen = last_event_id if re.fullmatch(r"\d{1,20}-\d{1,20}", last_event_id or "") else None
    place: tuple[JobStatus, int, int | None] | None = None
    outlook = Outlook()
    async with state["store"].news.of(job_id, every_event=True) as moved:
        while True:
            if state["store"].news.is_closing:  # the client resumes at another gateway, by Last-Event-ID
                return
            moved.clear()
            try:
                record = await store.jobs.get(job_id, caller.sees)
                has_moved = place is None or (record.status, record.attempt) != place[:2]
                if has_moved or record.status is JobStatus.QUEUED:  # otherwise it still has no place in the queue
                    outlook = await store.outlook(record)
                events = await store.jobs.happenings(job_id, after=seen or "0")
            except StoreUnavailable:  # the stream resumes here once the store is back
                await asyncio.sleep(POLL_S)
                continue
            except (JobExpired, JobNotFound):
                return
            for event in events:
                seen = event.id
                if event.name != "status":  # a status event shows the job as it is now, not as it was
                    yield ServerSentEvent(event=event.name, data=json.loads(event.data), id=event.id)
            job = job_of(record, outlook, address.root)
            if record.status.is_final:
                yield ServerSentEvent(event="done", data=job, id=seen)
                return
            if (record.status, record.attempt, outlook.queue_position) != place:
                place = record.status, record.attempt, outlook.queue_position
                yield ServerSentEvent(event="status", data=job, id=seen)
            try:
                await asyncio.wait_for(moved.wait(), POLL_S)
            except TimeoutError:
                continue
