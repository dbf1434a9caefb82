"""The answers of routes that create jobs: the job, or, if the client waits, its result."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Annotated

from fastapi import Header, Response
from fastapi.responses import JSONResponse

from app.gateway.addresses import Address
from app.gateway.formats import in_format
from app.gateway.shaping import job_of
from app.gateway.state import State
from cynosure.contract import JobStatus, OutputFormat
from cynosure.errors import JobCancelled, JobFailed
from jobs.accounts.api_keys import Caller
from jobs.queue.record import JobRecord

POLL_S = 1.0  # for clients that follow a job: a fallback in case the subscription misses an event
WAIT_POLL_S = 5.0  # the same for clients that wait for a job's end, of which there may be thousands
DEFAULT_IMAGE_WAIT_S = 60.0
Prefer = Annotated[str | None, Header(description="wait=SECONDS holds the answer until the job is done")]


def _wait_of(prefer: str | None) -> float | None:
    """Seconds of `Prefer: wait=SECONDS` (RFC 7240), or `None`."""
    match = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d+)", prefer or "")
    return float(match.group(1)) if match else None


def held_for(state: State, prefer: str | None, default_s: float | None = None) -> float | None:
    """Seconds to hold the answer, or `None` if the client did not ask to wait."""
    wait_s = _wait_of(prefer)
    wait_s = default_s if wait_s is None else wait_s
    return None if wait_s is None else min(wait_s, state["settings"].max_wait_s)


async def wait_for(state: State, caller: Caller, job_id: str, seconds: float) -> JobRecord:
    """Wait until the job has ended or the time is up, and return its record."""
    until = time.monotonic() + seconds
    async with state["store"].news.of(job_id) as event:
        while True:
            event.clear()
            record = await state["store"].jobs.get(job_id, caller.sees)
            left = until - time.monotonic()
            if record.status.is_final or left <= 0 or state["store"].news.is_closing:
                return record
            try:
                await asyncio.wait_for(event.wait(), min(left, WAIT_POLL_S))
            except TimeoutError:
                continue


def refuse_unless_drawn(record: JobRecord) -> None:
    """Raise the error of a job that has ended without pictures.

    Raises:
        JobFailed, JobCancelled: it did not succeed.
    """
    if record.status is JobStatus.CANCELLED:
        raise JobCancelled(f"Job '{record.id}' was cancelled.")
    if record.status is JobStatus.FAILED and record.error is not None:
        raise JobFailed(record.error.message, job_code=record.error.code)


async def _picture(state: State, caller: Caller, record: JobRecord, to: OutputFormat, root: str) -> Response:
    refuse_unless_drawn(record)
    picture = await in_format(await state["store"].jobs.image(record.id, 0, caller.sees), to)
    headers = {"Location": f"{root}/jobs/{record.id}", "X-Cynosure-Seed": str(record.request.seed), "Vary": "Accept"}
    return Response(picture, media_type=to.media_type, headers=headers)


async def answer(
    state: State,
    caller: Caller,
    address: Address,
    job_id: str,
    prefer: str | None,
    *,
    as_picture: OutputFormat | None = None,
) -> Response:
    """Answer 202 with the job, or 200 with its result if the client asked to wait and the job is done."""
    held_s = held_for(state, prefer, DEFAULT_IMAGE_WAIT_S if as_picture else None)
    record = await wait_for(state, caller, job_id, held_s or 0.0)
    if as_picture and record.status.is_final:
        return await _picture(state, caller, record, as_picture, address.root)
    job = job_of(record, await state["store"].jobs.outlook(record), address.root)
    headers = {"Location": f"{address.root}/jobs/{job_id}", "Vary": "Accept"}
    if held_s is not None:
        headers["Preference-Applied"] = f"wait={held_s:g}"
    done = record.status.is_final and held_s is not None
    return JSONResponse(job.model_dump(mode="json"), 200 if done else 202, headers=headers)
