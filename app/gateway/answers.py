"""The answers of routes that create jobs: the job, or, if the client waits, its result."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Header, Request, Response

from app.gateway.addresses import Address
from app.gateway.door.links import signed
from app.gateway.formats import in_format
from app.gateway.shaping import image_paths, job_json
from app.gateway.state import State
from cynosure.contract import JobStatus, OutputFormat
from cynosure.errors import JobCancelled, JobFailed, JobUnfinished, ShuttingDown
from jobs.accounts.api_keys import Caller
from jobs.queue.gateway import Accepted
from jobs.queue.pace import Seen
from jobs.queue.record import ANONYMOUS, JobRecord

JSON = "application/json"
POLL_S = 1.0  # for clients that follow a job: a fallback in case the subscription misses an event
WAIT_POLL_S = 5.0  # the same for clients that wait for a job's end, of which there may be thousands
DEFAULT_IMAGE_WAIT_S = 60.0
MAX_HELD_S = 600.0  # the timeout of OpenAI's own client
CLOSING_RETRY_S = 2  # about the time that a restarted gateway needs; another one may answer at once
Result = TypeVar("Result")
Prefer = Annotated[str | None, Header(description="wait=SECONDS holds the answer until the job is done")]


def _wait_of(prefer: str | None) -> float | None:
    """Seconds of `Prefer: wait=SECONDS` (RFC 7240), or `None`."""
    match = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d+)", prefer or "")
    return float(match.group(1)) if match else None


def held_for(state: State, prefer: str | None, default_s: float | None = None) -> float | None:
    """Seconds to hold the answer, or `None` if the client did not ask to wait."""
    wait_s = _wait_of(prefer)
    wait_s = default_s if wait_s is None else wait_s
    return None if wait_s is None else min(wait_s, state["settings"].max_wait_s)


async def wait_for(
    state: State,
    caller: Caller,
    job_id: str,
    seconds: float,
    *,
    seen: Seen | None = None,
    with_picture: bool = False,
) -> Seen:
    """Wait until the job has ended or the time is up, and look at it.

    Args:
        state: the gateway's state.
        caller: who waits.
        job_id: of the job.
        seconds: to wait at most.
        seen: the job as it was when it was accepted, a moment ago; if not given, it is looked at first.
        with_picture: whether its first picture is wanted, too, once it has ended.
    """
    store, until = state["store"], time.monotonic() + seconds
    async with store.news.of(job_id) as event:
        while seen is None or not seen.record.status.is_final:
            left = until - time.monotonic()
            if seen is not None:
                if left <= 0 or store.news.is_closing:
                    break
                with suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), min(left, WAIT_POLL_S))
            event.clear()
            seen = await store.jobs.look(job_id, caller.sees, with_picture=with_picture)
    return await store.foreseen(seen)


async def picture_urls(state: State, record: JobRecord, base: str) -> list[str]:
    """Addresses of the finished pictures, below `base`; signed if they need an API key."""
    paths = list(image_paths(record))
    if record.owner != ANONYMOUS and paths:
        _, paths = await signed(state, record.owner, paths)
    return [base + path for path in paths]


def refuse_unless_drawn(record: JobRecord) -> None:
    """Raise the error of a job that has ended without pictures.

    Raises:
        JobFailed, JobCancelled: it did not succeed.
    """
    if record.status is JobStatus.CANCELLED:
        raise JobCancelled(f"Job '{record.id}' was cancelled.")
    if record.status is JobStatus.FAILED and record.error is not None:
        raise JobFailed(record.error.message, job_code=record.error.code)


async def _picture(state: State, caller: Caller, seen: Seen, to: OutputFormat, root: str) -> Response:
    record, kept = seen.record, seen.picture
    refuse_unless_drawn(record)
    png = await (kept.read() if kept is not None else state["store"].jobs.image(record.id, 0, caller.sees))
    picture = await in_format(png, to)
    headers = {"Location": f"{root}/jobs/{record.id}", "X-Cynosure-Seed": str(record.request.seed), "Vary": "Accept"}
    return Response(picture, media_type=to.media_type, headers=headers)


async def answer(
    state: State,
    caller: Caller,
    address: Address,
    accepted: Accepted,
    prefer: str | None,
    *,
    as_picture: OutputFormat | None = None,
) -> Response:
    """Answer 202 with the job, or 200 with its result if the client asked to wait and the job is done."""
    held_s = held_for(state, prefer, DEFAULT_IMAGE_WAIT_S if as_picture else None)
    seen = await wait_for(
        state, caller, accepted.id, held_s or 0.0, seen=accepted.seen, with_picture=as_picture is not None
    )
    record = seen.record
    if as_picture and record.status.is_final:
        return await _picture(state, caller, seen, as_picture, address.root)
    headers = {"Location": f"{address.root}/jobs/{record.id}", "Vary": "Accept"}
    if held_s is not None:
        headers["Preference-Applied"] = f"wait={held_s:g}"
    done = record.status.is_final and held_s is not None
    return Response(job_json(seen, address.root), 200 if done else 202, headers, JSON)


@dataclass(frozen=True, kw_only=True)
class HeldJob:
    """The job behind a call that is answered with its pictures.

    Attributes:
        is_keyed: the call has an idempotency key, so the client can come back for the job.
    """

    state: State
    caller: Caller
    job_id: str
    is_keyed: bool = False

    async def abandon(self) -> None:
        """Cancel the job of a client that has gone, which frees its rows.

        If the gateway is stopping, or a proxy may have cut off a client that comes back with its key, the job stays.
        """
        if self.is_keyed or self.state["store"].news.is_closing:
            return
        await self.state["store"].jobs.cancel(self.job_id, self.caller.sees)

    def refuse_if_keyed(self) -> None:
        """Stop holding an answer for which the client can come back.

        Raises:
            JobUnfinished: the call has an idempotency key; the job goes on.
        """
        if self.is_keyed:
            raise JobUnfinished(
                f"Job '{self.job_id}' is not done yet, and goes on: send the request again with the same "
                "Idempotency-Key."
            )

    async def finished(self) -> JobRecord:
        """Wait for the job and return its record.

        Raises:
            JobFailed, JobCancelled: it did not succeed, or took too long.
            JobUnfinished: it took too long, and the client can come back for it.
            ShuttingDown: the gateway stops first.
        """
        record = (await wait_for(self.state, self.caller, self.job_id, MAX_HELD_S)).record
        if not record.status.is_final:
            self.refuse_if_closing()
            self.refuse_if_keyed()
            await self.abandon()
            raise JobFailed(
                f"The job was cancelled because it was not done within {MAX_HELD_S:g} s.", job_code="deadline_exceeded"
            )
        refuse_unless_drawn(record)
        return record

    def refuse_if_closing(self) -> None:
        """Stop holding an answer when this gateway shuts down.

        Raises:
            ShuttingDown: the job goes on, and the client can fetch it later.
        """
        if self.state["store"].news.is_closing:
            raise ShuttingDown(
                f"This gateway is shutting down, but job '{self.job_id}' goes on: fetch it with "
                f"GET /jobs/{self.job_id}, or send the request again with the same Idempotency-Key.",
                retry_after_s=CLOSING_RETRY_S,
            )


async def unless_gone(request: Request, held: HeldJob, work: Awaitable[Result]) -> Result:
    """The result of `work`; if the client drops the connection first, its job is abandoned.

    Raises:
        JobUnfinished: the client has gone, and the job stays for when it comes back.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            held.refuse_if_keyed()
            await held.abandon()
        return await working
    finally:
        leaving.cancel()
        working.cancel()  # no effect if it is done; needed if this call itself was cancelled


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
