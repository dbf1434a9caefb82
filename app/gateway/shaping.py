"""Conversion of job records to what the API shows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, overload

from cynosure.contract import ImageInfo, Job, JobAttempt, JobLinks
from cynosure.resolving import cells_of, detached
from jobs.queue.pace import Outlook, Seen
from jobs.queue.record import JobRecord


@overload
def moment(milliseconds: int) -> datetime: ...


@overload
def moment(milliseconds: int | None) -> datetime | None: ...


def moment(milliseconds: int | None) -> datetime | None:
    """Convert a time of the record, in milliseconds since 1970, to the API's form."""
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def image_paths(record: JobRecord) -> tuple[str, ...]:
    """The paths of the finished pictures, in the format that the request asks for."""
    if not record.image_hashes:
        return ()
    kind, count = record.request.output_format, len(record.image_hashes)
    return tuple(f"/jobs/{record.id}/images/{index}.{kind}" for index in range(count))


def sheet_path(record: JobRecord) -> str | None:
    """The path of a finished sweep's contact sheet."""
    return f"/jobs/{record.id}/sheet.png" if record.image_hashes and record.request.sweep else None


def job_of(record: JobRecord, outlook: Outlook, root: str) -> Job:
    """The job as clients see it; `root` precedes the path of every link."""
    request = detached(record.request)[0]  # records of earlier versions hold their pictures
    return Job(request=request, **_without_request(record, outlook, root))


def job_json(seen: Seen, root: str) -> bytes:
    """The same as JSON. The request is not read into its model, which would take longer than all the rest."""
    job = Job.model_construct(**_without_request(seen.record, seen.outlook, root))
    rest = job.model_dump_json(exclude={"request"})
    return f'{rest[:-1]},"request":{seen.record.shown_request}}}'.encode()


def _without_request(record: JobRecord, outlook: Outlook, root: str) -> dict[str, Any]:
    """All fields of the job but its request."""
    done = bool(record.image_hashes)
    flagged = record.flagged or ((),) * len(record.image_hashes)
    urls = tuple(root + path for path in image_paths(record))
    sheet = sheet_path(record)
    return dict(
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
        images=tuple(
            ImageInfo(
                index=index,
                url=urls[index],
                seed=cell.seed,
                first_image=number,
                sha256=sha256,
                flagged=flagged[index],
            )
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
            self=f"{root}/jobs/{record.id}",
            images=urls,
            sheet=root + sheet if sheet else None,
        ),
    )


def summary_of(record: JobRecord, outlook: Outlook, root: str) -> Job:
    """The job as lists show it: without telemetry, which may be megabytes."""
    job = job_of(record, outlook, root)
    return job.model_copy(update={"telemetry": None})
