"""From the record to what the API shows."""

from __future__ import annotations

from datetime import UTC, datetime

from app.jobs.record import JobRecord
from cynosure.contract import ImageInfo, Job, JobLinks


def _moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def job_of(record: JobRecord, queue_position: int | None) -> Job:
    """The job as clients see it."""
    urls = tuple(f"/jobs/{record.id}/images/{index}.png" for index in range(len(record.image_hashes)))
    return Job(
        id=record.id,
        status=record.status,
        created_at=datetime.fromtimestamp(record.created_ms / 1000, UTC),
        started_at=_moment(record.started_ms),
        finished_at=_moment(record.finished_ms),
        queue_position=queue_position,
        progress=record.progress,
        step=record.step,
        steps=record.steps,
        attempt=record.attempt,
        request=record.request,
        images=tuple(
            ImageInfo(index=index, url=urls[index], seed=record.request.seed, sha256=sha256)
            for index, sha256 in enumerate(record.image_hashes)
        ),
        error=record.error,
        links=JobLinks(self=f"/jobs/{record.id}", images=urls),
    )
