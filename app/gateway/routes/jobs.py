"""GET and DELETE /jobs/{id}."""

from __future__ import annotations

from fastapi import APIRouter

from app.gateway.auth import Reader, Submitter
from app.gateway.shaping import job_of
from app.gateway.state import StateDep
from cynosure.contract import Job, Problem

router = APIRouter(prefix="/jobs", tags=["jobs"], responses={404: {"model": Problem}, 410: {"model": Problem}})


@router.get("/{job_id}", summary="A job's status")
async def get_job(job_id: str, state: StateDep, caller: Reader) -> Job:
    """The job as it is now."""
    record = await state["store"].get(job_id, caller.sees)
    return job_of(record, await state["store"].queue_position(record))


@router.delete("/{job_id}", summary="Cancel a job")
async def cancel_job(job_id: str, state: StateDep, caller: Submitter) -> Job:
    """Cancel the job; a finished one stays as it is. A running job's rows are free within a heartbeat."""
    record = await state["store"].cancel(job_id, caller.sees)
    return job_of(record, None)
