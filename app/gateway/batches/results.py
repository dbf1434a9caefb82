"""A batch's results: line by line, and its pictures as a ZIP."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from datetime import datetime
from stat import S_IFREG
from typing import Any

from stream_zip import NO_COMPRESSION_64, Method

from app.gateway.batches.names import MemberNames
from app.gateway.formats import in_format
from app.gateway.shaping import job_of, moment
from app.gateway.state import State
from cynosure.batches import Batch, BatchCounts, BatchLinks, BatchResult, BatchStatus
from jobs.batches import BatchRecord, Line
from jobs.queue.pace import Outlook
from jobs.queue.record import EVERYONE, JobRecord

_PAGE = 100
_MODE = S_IFREG | 0o644
Member = tuple[str, datetime, int, Method, AsyncIterator[bytes]]


def batch_of(record: BatchRecord, root: str) -> Batch:
    """The batch as clients see it; `root` precedes the path of every link."""
    waiting, ended = record.total - record.fed, dict(record.ended)
    if record.status is BatchStatus.CANCELLED:
        ended["cancelled"] += waiting
        waiting = 0
    path = f"{root}/batches/{record.id}"
    return Batch(
        id=record.id,
        status=record.status,
        created_at=moment(record.created_ms),
        counts=BatchCounts(total=record.total, waiting=waiting, queued=record.queued, running=record.running, **ended),
        links=BatchLinks(self=path, results=f"{path}/results", images=f"{path}/images.zip"),
    )


async def _rows(
    state: State, record: BatchRecord, first: int, count: int
) -> AsyncIterator[tuple[int, Line, str | None, JobRecord | None]]:
    """Yield line number, line, job id and job record for up to `count` lines from `first` on, counted from 1."""
    index, end = first - 1, min(record.total, first - 1 + count)
    while index < end:
        size = min(_PAGE, end - index)
        lines = await state["store"].batches.lines(record.id, index, size)
        jobs = await state["store"].batches.jobs(record.id, index, size)
        for offset, line in enumerate(lines):
            job_id, job = jobs[offset] if offset < len(jobs) else (None, None)
            yield index + offset + 1, line, job_id, job
        index += size


async def results_of(state: State, record: BatchRecord, first: int, count: int, root: str) -> AsyncIterator[bytes]:
    """Yield NDJSON, one line for each line of the batch."""
    async for number, line, job_id, job in _rows(state, record, first, count):
        yield _result(record, number, line, job_id, job, root).model_dump_json().encode() + b"\n"


def _result(
    record: BatchRecord, number: int, line: Line, job_id: str | None, job: JobRecord | None, root: str
) -> BatchResult:
    if job is None:
        status = "expired" if job_id else "cancelled" if record.status is BatchStatus.CANCELLED else "waiting"
        return BatchResult(line=number, custom_id=line.custom_id, status=status, job_id=job_id, seed=line.request.seed)
    shown = job_of(job, Outlook(), root)
    return BatchResult(
        line=number,
        custom_id=line.custom_id,
        status=shown.status,
        job_id=job_id,
        seed=line.request.seed,
        images=shown.images,
        error=shown.error,
        warnings=shown.warnings,
    )


async def members_of(state: State, record: BatchRecord) -> AsyncIterator[Member]:
    """Yield every finished picture as `NAME-INDEX.FORMAT`, in order."""
    names = MemberNames()
    async for number, line, job_id, job in _rows(state, record, 1, record.total):
        base = names.of(number, line.custom_id)  # of all lines, so that a later ZIP has the same names
        if job is None or job_id is None:
            continue
        made = moment(job.finished_ms or job.created_ms)
        for index, png in enumerate(await state["store"].jobs.images(job_id, EVERYONE)):
            content = await in_format(png, line.request.output_format)
            name = f"{base}-{index:02d}.{line.request.output_format}"
            # Pictures are compressed already, so the ZIP stores them as they are. In all they may exceed 4 GiB.
            yield name, made, _MODE, NO_COMPRESSION_64(len(content), zlib.crc32(content)), _once(content)


async def _once(content: bytes) -> AsyncIterator[Any]:
    yield content
