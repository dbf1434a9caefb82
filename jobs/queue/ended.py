"""What the log gets of jobs: a line when one ends, whoever ends it, and one when a worker can't read one."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

from pydantic import ValidationError

from jobs import traces
from jobs.queue.record import Origin

log = logging.getLogger("jobs")


def log_end(job_id: str, model: str, fields: Sequence[bytes | None]) -> None:
    """Log that a job has ended.

    Args:
        job_id: of the job.
        model: that it was for.
        fields: of its record, as the scripts' `ending` returns them.
    """
    status, error, *numbers, hashes, cached, origin = ((field or b"").decode() for field in fields)
    attempt, evaluations, created_ms, queued_ms, started_ms, finished_ms = (int(number or 0) for number in numbers)
    come_from = Origin.decoded(origin)
    line = {
        "job": job_id,
        "model": model,
        "status": status,
        "code": json.loads(error)["code"] if error else None,
        "attempt": attempt,
        "waited_s": ((started_ms or finished_ms) - (queued_ms or created_ms)) / 1000,
        "drew_s": (finished_ms - started_ms) / 1000 if started_ms else 0.0,
        "evaluations": 0 if cached else evaluations,
        "pictures": len(json.loads(hashes)) if hashes else 0,
        "cached": True if cached else None,
        "key": come_from.key or None,
        "request_id": come_from.request_id or None,
        "trace_id": traces.trace_id_of(come_from.traceparent) or None,
    }
    log.info("job ended", extra=line)


def log_unreadable(job_id: str, error: ValidationError) -> None:
    """Log which fields are invalid, but not their values: those are the client's."""
    faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
    line = "this version can't read the job's request, but another may: %s"
    log.error(line, faults, extra={"job": job_id})
