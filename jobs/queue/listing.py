"""An owner's jobs, newest first, a page at a time."""

from __future__ import annotations

from collections.abc import Sequence

from cynosure.contract import JobStatus
from jobs.queue.record import JobRecord, decode_record
from jobs.store.answering import answering
from jobs.store.connection import StoreClient
from jobs.store.paging import Page, page_of


class Listing(StoreClient):
    """Reads each owner's index of jobs."""

    async def page(self, owner: str, *, status: JobStatus | None, cursor: str | None, limit: int) -> Page[JobRecord]:
        """The owner's jobs after `cursor`, with that status, newest first.

        Raises:
            InvalidRequest: this server gave no such cursor.
            StoreUnavailable: Redis is away.
        """
        return await page_of(
            self._client,
            self._keys.owned(owner),
            self._records,
            lambda record: status in (None, record.status),
            cursor=cursor,
            limit=limit,
        )

    async def _records(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        async with answering(), self._client.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hgetall(self._keys.job(job_id))
            hashes = await pipe.execute()
        return [
            decode_record(job_id, fields) if fields else None for job_id, fields in zip(job_ids, hashes, strict=True)
        ]
