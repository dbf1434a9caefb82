"""GET /jobs/{id}/events."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app.gateway.addresses import AddressDep
from app.gateway.door.auth import Reader
from app.gateway.shaping import job_json
from app.gateway.state import StateDep
from cynosure.contract import JobStatus, Problem
from cynosure.errors import JobExpired, JobNotFound, StoreUnavailable
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
    store, news, job_id = state["store"], state["store"].news, record.id
    told = last_event_id if re.fullmatch(r"\d{1,20}-\d{1,20}", last_event_id or "") else None
    place: tuple[JobStatus, int, int | None] | None = None
    async with news.of(job_id, every_event=True) as moved:
        while not news.is_closing:  # then the client resumes at another gateway, by Last-Event-ID
            moved.clear()
            try:
                seen, events = await asyncio.gather(
                    store.look(job_id, caller.sees), store.jobs.happenings(job_id, after=told or "0")
                )
            except StoreUnavailable:  # the stream resumes here once the store is back
                await asyncio.sleep(news.look_s)
                continue
            except (JobExpired, JobNotFound):
                return
            for event in events:
                told = event.id
                if event.name != "status":  # a status event shows the job as it is now, not as it was
                    yield ServerSentEvent(event=event.name, raw_data=event.data, id=event.id)
            job = job_json(seen, address.root).decode()
            if seen.record.status.is_final:
                yield ServerSentEvent(event="done", raw_data=job, id=told)
                return
            if (now := (seen.record.status, seen.record.attempt, seen.outlook.queue_position)) != place:
                place = now
                yield ServerSentEvent(event="status", raw_data=job, id=told)
            with suppress(TimeoutError):
                async with asyncio.timeout(news.look_s):
                    await moved.wait()
