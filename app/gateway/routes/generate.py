"""POST /generate."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
import time
from typing import Annotated

from fastapi import APIRouter, Header, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from app.gateway.shaping import job_of
from app.gateway.state import State, StateDep
from app.jobs.record import JobRecord, new_job_id
from cynosure.contract import GenerateRequest, Job, JobStatus, ModelCard, Problem
from cynosure.errors import InvalidRequest, JobCancelled, JobFailed, NoWorker, UnknownModel
from cynosure.resolving import resolve

log = logging.getLogger(__name__)
router = APIRouter(tags=["generate"])

POLL_S = 1.0  # the safety net under the subscription
DEFAULT_IMAGE_WAIT_S = 60.0


def _wait_of(prefer: str | None) -> float | None:
    """Seconds of `Prefer: wait=SECONDS` (RFC 7240), or `None`."""
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d+)", prefer or "")
    return float(found.group(1)) if found else None


async def _card(state: State, name: str | None) -> ModelCard:
    cards = await state["fleet"].cards()
    if not cards:
        raise NoWorker("No worker is up yet; try again in a few seconds.", retry_after_s=5)
    if name is None:
        return next(iter(cards.values()))
    if name not in cards:
        raise UnknownModel(name, list(cards))
    return cards[name]


async def _submit(state: State, asked: GenerateRequest, idempotency_key: str | None) -> str:
    request = resolve(asked, await _card(state, asked.model), seed=secrets.randbits(63))
    fingerprint = hashlib.sha256(asked.model_dump_json().encode()).hexdigest()
    accepted = await state["store"].accept(
        new_job_id(),
        request,
        steps=request.steps * request.num_images,
        idempotency_key=idempotency_key,
        fingerprint=fingerprint,
    )
    if not accepted.replayed:
        try:
            await run_in_threadpool(state["doorbell"].ring, accepted.id, request.model, request.priority)
        except Exception:
            # The job is accepted and on record: the reaper rings for it. Failing here would make the client send twice.
            log.exception("the bell for job %s could not be rung; the reaper will", accepted.id)
    return accepted.id


async def wait_for(state: State, job_id: str, seconds: float) -> JobRecord:
    """The record, once it is final or the time is up."""
    until = time.monotonic() + seconds
    async with state["finished"].of(job_id) as event:
        while True:
            record = await state["store"].get(job_id)
            left = until - time.monotonic()
            if record.status.is_final or left <= 0:
                return record
            try:
                await asyncio.wait_for(event.wait(), min(left, POLL_S))
            except TimeoutError:
                continue


async def _picture(state: State, record: JobRecord) -> Response:
    if record.status is JobStatus.CANCELLED:
        raise JobCancelled(f"Job '{record.id}' was cancelled.")
    if record.status is JobStatus.FAILED and record.error is not None:
        raise JobFailed(record.error.message, job_code=record.error.code)
    png = await state["store"].image(record.id, 0)
    headers = {"Location": f"/jobs/{record.id}", "X-Cynosure-Seed": str(record.request.seed)}
    return Response(png, media_type="image/png", headers=headers)


@router.post(
    "/generate",
    status_code=202,
    response_model=Job,
    summary="Draw pictures",
    responses={200: {"model": Job, "content": {"image/png": {}}}, 422: {"model": Problem}, 503: {"model": Problem}},
)
async def generate(
    asked: GenerateRequest,
    state: StateDep,
    prefer: Annotated[str | None, Header(description="wait=SECONDS holds the answer until done")] = None,
    accept: Annotated[str | None, Header()] = None,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> Response:
    """Accept a job. `Prefer: wait=SECONDS` waits for it; `Accept: image/png` answers with the first picture itself."""
    as_picture = "image/png" in (accept or "")
    if as_picture and asked.num_images > 1:
        raise InvalidRequest(
            "Accept: image/png answers with one picture; ask for one, or for JSON.", field="num_images"
        )
    job_id = await _submit(state, asked, idempotency_key)
    wait_s = _wait_of(prefer)
    if wait_s is None and as_picture:
        wait_s = DEFAULT_IMAGE_WAIT_S
    held = 0.0 if wait_s is None else min(wait_s, state["settings"].max_wait_s)
    record = await wait_for(state, job_id, held)
    if as_picture and record.status.is_final:
        return await _picture(state, record)
    job = job_of(record, await state["store"].queue_position(record))
    headers = {"Location": f"/jobs/{job_id}"}
    if wait_s is not None:
        headers["Preference-Applied"] = f"wait={held:g}"
    done = record.status.is_final and wait_s is not None
    return JSONResponse(job.model_dump(mode="json"), 200 if done else 202, headers=headers)
