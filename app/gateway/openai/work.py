"""Jobs behind OpenAI's images API: waiting for them, streaming them, and cancelling them if the client goes."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request

from app.gateway.addresses import Address
from app.gateway.answers import POLL_S, refuse_unless_drawn, wait_for
from app.gateway.door.links import signed
from app.gateway.errors.openai import error_body
from app.gateway.formats import in_format
from app.gateway.openai.shapes import ImageParams, completed_event, facts_of, partial_event
from app.gateway.shaping import image_paths
from app.gateway.state import State
from cynosure.contract import Preview, ResolvedRequest
from cynosure.errors import CynosureError, JobFailed, JobUnfinished, ShuttingDown
from jobs.accounts.api_keys import Caller
from jobs.queue.record import ANONYMOUS, JobRecord

MAX_HELD_S = 600.0  # the timeout of OpenAI's own client
PING_S = 15.0  # proxies cut a connection that was silent for a minute
PING = b": ping\n\n"  # a comment: clients skip it
CLOSING_RETRY_S = 2  # about the time that a restarted gateway needs; another one may answer at once
Result = TypeVar("Result")


@dataclass(frozen=True)
class Drawing:
    """The job behind one call.

    Attributes:
        is_keyed: the call has an idempotency key, so the client can come back for the job.
    """

    state: State
    caller: Caller
    params: ImageParams
    request: ResolvedRequest
    job_id: str
    is_keyed: bool

    async def picture(self, index: int) -> bytes:
        """Finished picture `index` in the requested format."""
        png = await self.state["store"].jobs.image(self.job_id, index, self.caller.sees)
        return await in_format(png, self.request.output_format, self.params.output_compression)

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
        record = await wait_for(self.state, self.caller, self.job_id, MAX_HELD_S)
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


async def unless_gone(request: Request, drawing: Drawing, work: Awaitable[Result]) -> Result:
    """The result of `work`; if the client drops the connection first, its job is abandoned.

    Raises:
        JobUnfinished: the client has gone, and the job stays for when it comes back.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            drawing.refuse_if_keyed()
            await drawing.abandon()
        return await working
    finally:
        leaving.cancel()
        working.cancel()  # no effect if it is done; needed if this call itself was cancelled


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def data_of(drawing: Drawing, address: Address) -> list[dict[str, str]]:
    """The finished pictures, as base64 or as URLs; these are signed if pictures need an API key."""
    record = await drawing.finished()
    if drawing.params.response_format == "url":
        paths = list(image_paths(record))
        if record.owner != ANONYMOUS:
            _, paths = await signed(drawing.state, record.owner, paths)
        return [{"url": address.base + path} for path in paths]
    indices = range(len(record.image_hashes))
    return [{"b64_json": base64.b64encode(await drawing.picture(index)).decode()} for index in indices]


async def events_of(drawing: Drawing, kind: str) -> AsyncIterator[bytes]:
    """Yield the stream: partial pictures, then finished ones, or an error. If the client goes, the job is abandoned."""
    done, spoke = False, time.monotonic()
    try:
        async for event in _events(drawing, kind):
            if event is None:
                if time.monotonic() - spoke >= PING_S:
                    yield PING
                    spoke = time.monotonic()
                continue
            spoke = time.monotonic()
            yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
        done = True
    except CynosureError as error:
        done = True
        yield f"event: error\ndata: {json.dumps(error_body(error.status, error.code, error.detail, None))}\n\n".encode()
    finally:
        if not done:
            await asyncio.shield(drawing.abandon())


async def _events(drawing: Drawing, kind: str) -> AsyncIterator[dict[str, Any] | None]:
    """Yield the events, and `None` at least every `POLL_S` while there are none."""
    store, facts = drawing.state["store"].jobs, facts_of(drawing.params, drawing.request)
    seen, sent = "0", 0
    async with drawing.state["store"].news.of(drawing.job_id, every_event=True) as moved:
        while True:
            moved.clear()
            record = await store.get(drawing.job_id, drawing.caller.sees)
            for event in await store.happenings(drawing.job_id, after=seen):
                seen = event.id
                preview = Preview.model_validate_json(event.data) if event.name == "preview" else None
                if preview is not None and preview.image == 0 and sent < drawing.params.partials:
                    yield partial_event(kind, preview.png, sent, facts)
                    sent += 1
            if record.status.is_final:
                break
            yield None
            drawing.refuse_if_closing()
            with suppress(TimeoutError):
                await asyncio.wait_for(moved.wait(), POLL_S)
    refuse_unless_drawn(record)
    for index in range(len(record.image_hashes)):
        yield completed_event(kind, base64.b64encode(await drawing.picture(index)).decode(), facts)
