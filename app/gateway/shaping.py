"""Conversion of job records to what the API shows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import overload

from cynosure.contract import ImageInfo, Job, JobAttempt, JobLinks
from cynosure.resolving import cells_of, detached
from jobs.queue.pace import Outlook
from jobs.queue.record import JobRecord


@overload
def moment(milliseconds: int) -> datetime: ...


@overload
def moment(milliseconds: int | None) -> datetime | None: ...


def moment(milliseconds: int | None) -> datetime | None:
    """Convert a time of the record, in milliseconds since 1970, to the API's form."""
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def job_of(record: JobRecord, outlook: Outlook) -> Job:
    """The job as clients see it."""
    done = bool(record.image_hashes)
    urls = tuple(
        f"/jobs/{record.id}/images/{index}.{record.request.output_format}" for index in range(len(record.image_hashes))
    )
    return Job(
        id=record.id,
        status=record.status,
        created_at=moment(record.created_ms),
        started_at=moment(record.started_ms),
        finished_at=moment(record.finished_ms),
        queue_position=outlook.queue_position,
        eta_seconds=None if outlook.eta_seconds is None else round(outlook.eta_seconds, 2),
        not_before=moment(record.not_before_ms),
        progress=record.progress,
        evaluations_done=record.evaluations_done,
        evaluations=record.evaluations,
        attempt=record.attempt,
        attempts=tuple(
            JobAttempt(
                number=attempt.number,
                started_at=moment(attempt.started_ms),
                ended_at=moment(attempt.ended_ms),
                outcome=attempt.outcome or "running",
                error=attempt.error,
            )
            for attempt in record.attempts
        ),
        request=detached(record.request)[0],  # records of earlier versions hold their pictures
        images=tuple(
            ImageInfo(index=index, url=urls[index], seed=cell.seed, first_image=number, sha256=sha256)
            for index, (sha256, (cell, number)) in enumerate(
                zip(record.image_hashes, cells_of(record.request) if done else (), strict=True)
            )
        ),
        error=record.error,
        cached=record.cached,
        reproducible=record.reproducible,
        telemetry=record.telemetry,
        warnings=record.warnings,
        links=JobLinks(
            self=f"/jobs/{record.id}",
            images=urls,
            sheet=f"/jobs/{record.id}/sheet.png" if done and record.request.sweep else None,
        ),
    )


def summary_of(record: JobRecord, outlook: Outlook) -> Job:
    """The job as lists show it: without telemetry, which may be megabytes."""
    job = job_of(record, outlook)
    return job.model_copy(update={"telemetry": None})
