"""Jobs and their pictures, for those who only look."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Any

import redis.asyncio

from cynosure.contract import JobStatus
from cynosure.errors import ImageNotFound, JobExpired, JobNotFound
from jobs.metrics import Metrics
from jobs.pictures.keeping import Picture
from jobs.pictures.opening import pictures_of
from jobs.queue.pace import Outlook, Pace, Seen, outlook_of
from jobs.queue.record import ANONYMOUS, Happening, JobRecord, decode_record, may_see
from jobs.settings import StoreSettings
from jobs.store.answering import answering
from jobs.store.connection import StoreClient
from jobs.store.scripts import script

_PACE = (b"jobs", b"pictures", b"work", b"busy_ms", b"ran_ms")
"""What `look.lua` returns of it."""


class JobReader(StoreClient):
    """Jobs and their pictures. Methods raise `StoreUnavailable` if Redis is away, `StorageUnavailable` if S3 is.

    Attributes:
        places: where pictures are kept.
    """

    def __init__(self, client: redis.asyncio.Redis, settings: StoreSettings, metrics: Metrics) -> None:
        super().__init__(client, settings)
        self.places = pictures_of(settings, metrics)
        self._look = client.register_script(script("look"))

    async def get(self, job_id: str, viewer: str) -> JobRecord:
        """The record, if `viewer` (an owner or `EVERYONE`) may see it.

        Raises:
            JobExpired: it is no longer kept.
            JobNotFound: there never was one, or it belongs to another owner; the caller can't tell which.
        """
        return (await self.look(job_id, viewer)).record

    async def look(self, job_id: str, viewer: str, *, with_picture: bool = False) -> Seen:
        """The record, and the job's place in the queue and time to completion, from its model's recent pace.

        With its first picture, if that is asked for. One round trip.

        Raises:
            JobExpired, JobNotFound: as `get`.
        """
        async with answering():
            if with_picture:
                found, kept = await asyncio.gather(self._looking(job_id), self._first_kept(job_id))
            else:
                found, kept = await self._looking(job_id), None
        if (seen := seen_in(job_id, found)) is not None:
            if may_see(viewer, seen.record.owner):
                return seen if kept is None else replace(seen, picture=self.places.find(job_id, kept))
        elif found[0] is not None and may_see(viewer, found[0].decode()):
            raise JobExpired(f"Job '{job_id}' and its pictures are no longer kept.")
        raise JobNotFound(f"There is no job '{job_id}'.")

    def _looking(self, job_id: str) -> Awaitable[Any]:
        """The answer of `look.lua`."""
        return self._trips.run(
            self._look,
            keys=[self._keys.job(job_id), self._keys.known(job_id)],
            args=[f"{self._keys.prefix}:", job_id, int(self._settings.priority_ageing_s * 1000)],
        )

    async def _first_kept(self, job_id: str) -> Any:
        """What is kept of picture 0, if it is there."""
        return await self._trips.call("HGET", self._keys.images(job_id), "0")

    async def inputs(self, record: JobRecord) -> dict[str, str]:
        """The pictures that came with the job's request, base64 by field, as far as they are still kept."""
        if not record.request.inputs:
            return {}
        async with answering():
            fields: Any = await self._client.hgetall(self._keys.inputs(record.id))
        return {name.decode(): picture.decode() for name, picture in fields.items()}

    async def happenings(self, job_id: str, *, after: str) -> list[Happening]:
        """The job's events after the one with id `after` ("0" for all), oldest first, as far as they are kept."""
        async with answering():
            entries: Any = await self._trips.call("XRANGE", self._keys.events(job_id), f"({after}", "+")
        return [
            Happening(fields[b"event"].decode(), fields[b"data"].decode(), entry.decode()) for entry, fields in entries
        ]

    async def picture(self, job_id: str, index: int, viewer: str) -> Picture:
        """Picture `index`, not read yet.

        Raises:
            ImageNotFound: there is none of that index, or not yet.
            JobExpired, JobNotFound: as `get`.
        """
        picture = await self._picture(job_id, str(index), viewer)
        if picture is None:
            record = await self.get(job_id, viewer)
            raise ImageNotFound(f"Job '{job_id}' has no image {index}: {_images_of(record)}.")
        return picture

    async def image(self, job_id: str, index: int, viewer: str) -> bytes:
        """PNG bytes of picture `index`.

        Raises:
            ImageNotFound, JobExpired, JobNotFound: as `picture`.
        """
        return await (await self.picture(job_id, index, viewer)).read()

    async def images(self, job_id: str, viewer: str) -> list[bytes]:
        """PNG bytes of all pictures of the job, in order; none if it has none, is not kept or is another owner's."""
        kept = await self._read_pictures(job_id, viewer, "HGETALL", self._keys.images(job_id))
        by_index = {int(name): one for name, one in (kept or {}).items() if name.isdigit()}  # the rest is the sheet
        pictures = [self.places.find(job_id, by_index[index]) for index in sorted(by_index)]
        try:
            return list(await asyncio.gather(*(picture.read() for picture in pictures)))
        except JobExpired:
            return []

    async def sheet(self, job_id: str, viewer: str) -> Picture:
        """A sweep's contact sheet, not read yet.

        Raises:
            ImageNotFound: the job is not a sweep, or not done.
            JobExpired, JobNotFound: as `get`.
        """
        picture = await self._picture(job_id, "sheet", viewer)
        if picture is None:
            await self.get(job_id, viewer)
            raise ImageNotFound(f"Job '{job_id}' has no sheet: only sweeps have one, once they have succeeded.")
        return picture

    async def _picture(self, job_id: str, name: str, viewer: str) -> Picture | None:
        """The picture, or `None` if there is none that `viewer` may see."""
        kept = await self._read_pictures(job_id, viewer, "HGET", self._keys.images(job_id), name)
        return None if kept is None else self.places.find(job_id, kept)

    async def _read_pictures(self, job_id: str, viewer: str, *command: str) -> Any:
        """The answer to the command, or `None` if `viewer` may not see the job. One round trip."""
        async with answering():
            owner, answer = await asyncio.gather(
                self._trips.call("HGET", self._keys.job(job_id), "owner"), self._trips.call(*command)
            )
        return answer if may_see(viewer, (owner or ANONYMOUS.encode()).decode()) else None


def seen_in(job_id: str, found: Sequence[Any]) -> Seen | None:
    """The job in the answer of `look.lua`, if it is kept."""
    if not isinstance(found[0], list):
        return None
    flat, *of_queue = found
    record = decode_record(job_id, dict(zip(flat[::2], flat[1::2], strict=True)))
    if not of_queue:
        return Seen(record, Outlook())
    now_ms, place, pace = of_queue
    known = {name: value for name, value in zip(_PACE, pace, strict=True) if value is not None}
    return Seen(record, outlook_of(record, Pace.of(known), position=place if place >= 0 else None, now_ms=now_ms))


def _images_of(record: JobRecord) -> str:
    """What images a job has, and why no more."""
    match record.status:
        case JobStatus.QUEUED:
            return "it is still queued"
        case JobStatus.RUNNING:
            return "it is still running"
        case JobStatus.SUCCEEDED:
            count = len(record.image_hashes)
            return "it has 1 image, index 0" if count == 1 else f"it has {count} images, 0 to {count - 1}"
        case JobStatus.FAILED:
            return "it failed"
        case JobStatus.CANCELLED:
            return "it was cancelled"
