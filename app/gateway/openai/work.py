"""Jobs behind OpenAI's images API: made, waited for or followed, and cancelled when the client goes."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request

from app.gateway.answers import POLL_S, refuse_unless_drawn, wait_for
from app.gateway.errors.openai import error_body
from app.gateway.formats import in_format
from app.gateway.openai.shapes import ImageParams, completed_event, facts_of, partial_event
from app.gateway.state import State
from cynosure.contract import Preview, ResolvedRequest
from cynosure.errors import CynosureError, JobFailed, ShuttingDown
from jobs.accounts.api_keys import Caller
from jobs.queue.record import JobRecord

MAX_HELD_S = 600.0  # the official client's own time-out
CLOSING_RETRY_S = 2  # another gateway may be there at once; this one's successor takes about so long
Made = TypeVar("Made")


@dataclass(frozen=True)
class Drawing:
    """One call's job."""

    state: State
    caller: Caller
    asked: ImageParams
    request: ResolvedRequest
    job_id: str

    async def picture(self, index: int) -> bytes:
        """Finished picture `index` in the format that was asked for."""
        png = await self.state["store"].jobs.image(self.job_id, index, self.caller.sees)
        return await in_format(png, self.request.output_format, self.asked.output_compression)

    async def cancel(self) -> None:
        """The client has gone: the job's rows are better used by others. Where the gateway goes, the job stays."""
        if self.state["store"].news.is_closing:
            return
        await self.state["store"].jobs.cancel(self.job_id, self.caller.sees)

    async def finished(self) -> JobRecord:
        """The record of the job, done.

        Raises:
            JobFailed, JobCancelled: it ended otherwise, or took too long.
            ShuttingDown: the gateway ends first.
        """
        record = await wait_for(self.state, self.caller, self.job_id, MAX_HELD_S)
        if not record.status.is_final:
            self.refuse_if_closing()
            await self.cancel()
            raise JobFailed(f"Not done within {MAX_HELD_S:g} s, and cancelled.", job_code="deadline_exceeded")
        refuse_unless_drawn(record)
        return record

    def refuse_if_closing(self) -> None:
        """Hold no answer that this gateway won't be there to end.

        Raises:
            ShuttingDown: the job goes on, and so may the client.
        """
        if self.state["store"].news.is_closing:
            raise ShuttingDown(
                f"This gateway is shutting down, and job '{self.job_id}' goes on: GET /jobs/{self.job_id}, or send the "
                "request again with the same Idempotency-Key.",
                retry_after_s=CLOSING_RETRY_S,
            )


async def unless_gone(request: Request, drawing: Drawing, work: Awaitable[Made]) -> Made:
    """The result of `work`; where the client drops the connection first, its job is cancelled."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            await drawing.cancel()
        return await working
    finally:
        leaving.cancel()
        working.cancel()  # in vain where it is done: it is not where this very call was cancelled


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def data_of(drawing: Drawing, base_url: str) -> list[dict[str, str]]:
    """The finished pictures, as base64 or as addresses."""
    record = await drawing.finished()
    indices = range(len(record.image_hashes))
    if drawing.asked.response_format == "url":
        path = f"{base_url}jobs/{record.id}/images"
        return [{"url": f"{path}/{index}.{record.request.output_format}"} for index in indices]
    return [{"b64_json": base64.b64encode(await drawing.picture(index)).decode()} for index in indices]


async def events_of(drawing: Drawing, kind: str) -> AsyncIterator[bytes]:
    """The stream's bytes: partial pictures, then the finished ones; an error ends it. A client who goes cancels."""
    done = False
    try:
        async for event in _events(drawing, kind):
            yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
        done = True
    except CynosureError as error:
        done = True
        yield f"event: error\ndata: {json.dumps(error_body(error.status, error.code, error.detail, None))}\n\n".encode()
    finally:
        if not done:
            await asyncio.shield(drawing.cancel())


async def _events(drawing: Drawing, kind: str) -> AsyncIterator[dict[str, Any]]:
    store, facts = drawing.state["store"].jobs, facts_of(drawing.asked, drawing.request)
    seen, sent = "0", 0
    async with drawing.state["store"].news.of(drawing.job_id, every_event=True) as moved:
        while True:
            moved.clear()
            record = await store.get(drawing.job_id, drawing.caller.sees)
            for happening in await store.happenings(drawing.job_id, after=seen):
                seen = happening.id
                preview = Preview.model_validate_json(happening.data) if happening.name == "preview" else None
                if preview is not None and preview.image == 0 and sent < drawing.asked.partials:
                    yield partial_event(kind, preview.png, sent, facts)
                    sent += 1
            if record.status.is_final:
                break
            drawing.refuse_if_closing()
            try:
                await asyncio.wait_for(moved.wait(), POLL_S)
            except TimeoutError:
                continue
    refuse_unless_drawn(record)
    for index in range(len(record.image_hashes)):
        yield completed_event(kind, base64.b64encode(await drawing.picture(index)).decode(), facts)
