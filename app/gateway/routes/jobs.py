"""GET /jobs, GET and DELETE /jobs/{id}, POST /jobs/{id}/retry and /vary."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from app.gateway.addresses import AddressDep
from app.gateway.answers import JSON, Prefer, answer, held_for, wait_for
from app.gateway.door.auth import Reader, Submitter
from app.gateway.json_bodies import JSONRoute
from app.gateway.shaping import job_json, job_of, summary_of
from app.gateway.state import State, StateDep
from app.gateway.submission import IdempotencyKey, accept, card_of, draw_seed, keyed, submission_of
from cynosure.contract import Job, JobList, JobStatus, Problem, VaryRequest
from cynosure.errors import JobExpired, JobNotFound, JobUnfinished
from cynosure.resolving import attached, varied
from jobs.accounts.api_keys import Caller
from jobs.queue.pace import Outlook
from jobs.queue.record import JobRecord

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=JSONRoute)
_EXPIRES: dict[int | str, dict[str, Any]] = {410: {"model": Problem}}
_MAKES: dict[int | str, dict[str, Any]] = {200: {"model": Job}, **_EXPIRES}


@router.get("", summary="List your jobs")
async def list_jobs(
    state: StateDep,
    caller: Reader,
    address: AddressDep,
    status: Annotated[JobStatus | None, Query(description="Only jobs in this state.")] = None,
    cursor: Annotated[str | None, Query(max_length=100, description="`next_cursor` of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Maximum number of jobs on a page.")] = 20,
) -> JobList:
    """The jobs that this API key posted, newest first, as long as they are kept.

    A page may be shorter than `limit` if jobs of the status are rare; the last page has a null `next_cursor`.
    """
    page = await state["store"].listing.page(caller.owner, status=status, cursor=cursor, limit=limit)
    outlooks = await asyncio.gather(*(_outlook(state, caller, record) for record in page.records))
    shown = (summary_of(record, outlook, address.root) for record, outlook in zip(page.records, outlooks, strict=True))
    return JobList(jobs=tuple(shown), next_cursor=page.next_cursor)


async def _outlook(state: State, caller: Caller, record: JobRecord) -> Outlook:
    if record.status.is_final:
        return Outlook()
    try:
        return (await state["store"].look(record.id, caller.owner)).outlook
    except (JobExpired, JobNotFound):  # it has just been erased
        return Outlook()


@router.get("/{job_id}", response_model=Job, summary="Get a job", responses=_EXPIRES)
async def get_job(job_id: str, state: StateDep, caller: Reader, address: AddressDep, prefer: Prefer = None) -> Response:
    """The job as it is now, or with `Prefer: wait=SECONDS` as soon as it is done or the time is up."""
    seen = await wait_for(state, caller, job_id, held_for(state, prefer) or 0.0)
    return Response(job_json(seen, address.root), media_type=JSON)


@router.delete("/{job_id}", summary="Cancel or erase a job", responses=_EXPIRES)
async def cancel_job(
    job_id: str,
    state: StateDep,
    caller: Submitter,
    address: AddressDep,
    erase: Annotated[bool, Query(description="Also delete the job, with its pictures.")] = False,
) -> Job:
    """Cancel the job; a finished one stays as it is. A running job stops at once, or within a worker's heartbeat.

    With `erase` it is deleted too, and answers 410 from then on; so are its pictures, and a webhook that is still to be
    sent.
    """
    jobs = state["store"].jobs
    record = await (jobs.erase if erase else jobs.cancel)(job_id, caller.sees)
    return job_of(record, Outlook(), address.root)


@router.post(
    "/{job_id}/retry",
    status_code=202,
    response_model=Job,
    summary="Retry a job",
    responses={**_MAKES, 409: {"model": Problem}},
)
async def retry_job(
    job_id: str,
    state: StateDep,
    caller: Submitter,
    address: AddressDep,
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Post the request of a job that has ended, seed included, as a new job: for jobs that failed or were cancelled."""
    record = await state["store"].jobs.get(job_id, caller.sees)
    if not record.status.is_final:
        raise JobUnfinished(f"Job '{job_id}' is still {record.status}: wait for it to end, or cancel it first.")
    card = await card_of(state, record.request.model)
    request = attached(record.request, await state["store"].jobs.inputs(record))
    submission = await submission_of(state, request, card, is_seeded=False)
    accepted = await accept(state, caller, await keyed(submission, idempotency_key, record.request), "jobs")
    return await answer(state, caller, address, accepted, prefer)


@router.post("/{job_id}/vary", status_code=202, response_model=Job, summary="Vary a job", responses=_MAKES)
async def vary_job(
    job_id: str,
    state: StateDep,
    caller: Submitter,
    address: AddressDep,
    changes: VaryRequest = VaryRequest(),  # noqa: B008  frozen
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Post the job's request as a new job with a new seed (a sweep: new seeds), whatever state the job is in."""
    record = await state["store"].jobs.get(job_id, caller.sees)
    card = await card_of(state, record.request.model)
    request = attached(record.request, await state["store"].jobs.inputs(record))
    submission = await submission_of(state, varied(request, changes, draw_seed), card, is_seeded=False)
    accepted = await accept(state, caller, await keyed(submission, idempotency_key, changes, of_job=job_id), "jobs")
    return await answer(state, caller, address, accepted, prefer)
