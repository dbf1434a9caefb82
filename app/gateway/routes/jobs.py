"""GET /jobs, GET and DELETE /jobs/{id}, POST /jobs/{id}/retry and /vary."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from app.gateway.answers import Prefer, answer, held_for, wait_for
from app.gateway.door.auth import Reader, Submitter
from app.gateway.shaping import job_of, summary_of
from app.gateway.state import StateDep
from app.gateway.submission import IdempotencyKey, accept, card_of, draw_seed, keyed, submission_of
from cynosure.contract import Job, JobList, JobStatus, Problem, VaryRequest
from cynosure.errors import JobUnfinished
from cynosure.resolving import attached, varied
from jobs.queue.pace import Outlook

router = APIRouter(prefix="/jobs", tags=["jobs"])
_EXPIRES: dict[int | str, dict[str, Any]] = {410: {"model": Problem}}
_MAKES: dict[int | str, dict[str, Any]] = {200: {"model": Job}, **_EXPIRES}


@router.get("", summary="One's own jobs")
async def list_jobs(
    state: StateDep,
    caller: Reader,
    status: Annotated[JobStatus | None, Query(description="Only jobs in this state.")] = None,
    cursor: Annotated[str | None, Query(max_length=100, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Jobs a page, at most.")] = 20,
) -> JobList:
    """The jobs that this API key posted, newest first, as long as they are kept.

    A page may be shorter than `limit` where jobs of the status are rare; the end is where `next_cursor` is null.
    """
    page = await state["store"].listing.page(caller.owner, status=status, cursor=cursor, limit=limit)
    outlooks = await state["store"].jobs.outlooks(page.records)
    jobs = tuple(summary_of(record, outlook) for record, outlook in zip(page.records, outlooks, strict=True))
    return JobList(jobs=jobs, next_cursor=page.next_cursor)


@router.get("/{job_id}", summary="A job's status", responses=_EXPIRES)
async def get_job(job_id: str, state: StateDep, caller: Reader, prefer: Prefer = None) -> Job:
    """The job as it is now, or, with `Prefer: wait=SECONDS`, once it is done or the time is up."""
    record = await wait_for(state, caller, job_id, held_for(state, prefer) or 0.0)
    return job_of(record, await state["store"].jobs.outlook(record))


@router.delete("/{job_id}", summary="Cancel a job", responses=_EXPIRES)
async def cancel_job(job_id: str, state: StateDep, caller: Submitter) -> Job:
    """Cancel the job; a finished one stays as it is. A running job's rows are free at once, or within a heartbeat."""
    record = await state["store"].jobs.cancel(job_id, caller.sees)
    return job_of(record, Outlook())


@router.post(
    "/{job_id}/retry",
    status_code=202,
    response_model=Job,
    summary="Post a job's request again",
    responses={**_MAKES, 409: {"model": Problem}},
)
async def retry_job(
    job_id: str,
    state: StateDep,
    caller: Submitter,
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """A new job with the request of one that has ended, seed and all: for a job that failed or was cancelled."""
    record = await state["store"].jobs.get(job_id, caller.sees)
    if not record.status.is_final:
        raise JobUnfinished(f"Job '{job_id}' is {record.status}: wait for it, or cancel it first.")
    card = await card_of(state, record.request.model)
    request = attached(record.request, await state["store"].jobs.inputs(record))
    submission = await submission_of(state, request, card, is_seeded=False)
    made = await accept(state, caller, await keyed(submission, idempotency_key, record.request))
    return await answer(state, caller, made, prefer)


@router.post(
    "/{job_id}/vary", status_code=202, response_model=Job, summary="The same request, new seeds", responses=_MAKES
)
async def vary_job(
    job_id: str,
    state: StateDep,
    caller: Submitter,
    changes: VaryRequest = VaryRequest(),  # noqa: B008  frozen
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """A new job with the same request and another seed (a sweep: other seeds), whatever state the job is in."""
    record = await state["store"].jobs.get(job_id, caller.sees)
    card = await card_of(state, record.request.model)
    request = attached(record.request, await state["store"].jobs.inputs(record))
    submission = await submission_of(state, varied(request, changes, draw_seed), card, is_seeded=False)
    made = await accept(state, caller, await keyed(submission, idempotency_key, changes, of_job=job_id))
    return await answer(state, caller, made, prefer)
