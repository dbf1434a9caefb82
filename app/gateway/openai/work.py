"""Jobs behind OpenAI's images API: their pictures as answers and streams."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from app.gateway.addresses import Address
from app.gateway.answers import POLL_S, HeldJob, picture_urls, refuse_unless_drawn
from app.gateway.errors.openai import error_body
from app.gateway.formats import in_format
from app.gateway.openai.shapes import ImageFields, completed_event, facts_of, partial_event
from cynosure.contract import Preview, ResolvedRequest
from cynosure.errors import CynosureError

PING_S = 15.0  # proxies cut a connection that was silent for a minute
PING = b": ping\n\n"  # a comment: clients skip it


@dataclass(frozen=True, kw_only=True)
class Drawing(HeldJob):
    """The job behind one call."""

    params: ImageFields
    request: ResolvedRequest

    async def picture(self, index: int) -> bytes:
        """Finished picture `index` in the requested format."""
        png = await self.state["store"].jobs.image(self.job_id, index, self.caller.sees)
        return await in_format(png, self.request.output_format, self.params.output_compression)


async def data_of(drawing: Drawing, address: Address) -> list[dict[str, str]]:
    """The finished pictures, as base64 or as URLs; these are signed if pictures need an API key."""
    record = await drawing.finished()
    if drawing.params.response_format == "url":
        return [{"url": url} for url in await picture_urls(drawing.state, record, address.base)]
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
