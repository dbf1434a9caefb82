"""The progress of a caller's latest call, and its end."""

from __future__ import annotations

from typing import Any

from app.gateway.a1111.drawing import timestamp
from app.gateway.state import State
from cynosure.contract import JobStatus, Preview
from cynosure.errors import JobExpired, JobNotFound
from jobs.accounts.api_keys import Caller
from jobs.queue.pace import Seen
from jobs.queue.record import JobRecord

_MOST_CALLS = 100  # that are looked at


async def latest(state: State, caller: Caller) -> Seen | None:
    """The job of the caller's latest call that is not answered yet.

    Callers without an API key are one caller, as all callers are in A1111.
    """
    for job_id in (await state["store"].sessions.calls(caller.owner))[:_MOST_CALLS]:
        try:
            seen = await state["store"].look(job_id, caller.owner)
        except (JobExpired, JobNotFound):
            continue
        if not seen.record.status.is_final:
            return seen
    return None


async def progress_of(state: State, seen: Seen | None, *, with_preview: bool) -> dict[str, Any]:
    """The body of GET progress."""
    if seen is None:
        return {"progress": 0.0, "eta_relative": 0.0, "state": _state(None), "current_image": None, "textinfo": None}
    record = seen.record
    is_queued = record.status is JobStatus.QUEUED
    return {
        "progress": record.progress,
        "eta_relative": round(seen.outlook.eta_seconds or 0.0, 2),
        "state": _state(record),
        "current_image": await _preview(state, record) if with_preview else None,
        "textinfo": "Waiting..." if is_queued else None,
    }


def _state(record: JobRecord | None) -> dict[str, Any]:
    steps = record.request.steps if record else 0
    return {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": record.id if record else "",
        "job_count": int(record is not None),
        "job_timestamp": timestamp(record) if record else "0",
        "job_no": 0,
        "sampling_step": int(record.progress * steps) if record else 0,
        "sampling_steps": steps,
    }


async def _preview(state: State, record: JobRecord) -> str | None:
    """The latest preview of the first picture, base64 PNG."""
    events = await state["store"].jobs.happenings(record.id, after="0")
    previews = (Preview.model_validate_json(event.data) for event in reversed(events) if event.name == "preview")
    return next((preview.png for preview in previews if preview.image == 0), None)
