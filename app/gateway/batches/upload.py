"""Receiving a batch: every line is checked as it arrives, and drawing starts only after the last."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

from app.gateway.batches.body import at_line, objects_of
from app.gateway.state import State
from app.gateway.submission import decide
from cynosure.batches import BatchLine, BatchStatus
from cynosure.contract import GenerateRequest
from cynosure.errors import CynosureError, IdempotencyConflict, InvalidRequest
from cynosure.refusals import parsed
from cynosure.resolving import attached
from jobs.accounts.api_keys import Caller
from jobs.batches import Batches, Line
from jobs.queue.record import new_job_id

_STAGED_AT_ONCE = 100
_COMPARED_AT_ONCE = 500
_LINES_A_TURN = 20  # resolving a line takes about a millisecond; then other requests get a turn


async def receive(state: State, caller: Caller, chunks: AsyncIterator[bytes], idempotency_key: str | None) -> str:
    """Receive the body, start the batch, and return its id.

    A client that was cut off sends the same body again with the same key: lines that have arrived already are compared
    but not checked again, and the upload resumes after them. A batch that has started already stays as it is.

    Raises:
        InvalidRequest, MalformedBody, BodyTooLarge: names the line.
        IdempotencyConflict: the key started another batch.
    """
    batches, upload = state["store"].batches, secrets.token_urlsafe(8)
    batch_id = await batches.open(new_job_id(), caller.owner, upload, idempotency_key)
    record = await batches.look(batch_id, caller.owner)
    settings = state["settings"]
    values = objects_of(chunks, max_line_bytes=settings.max_body_bytes, max_parts=settings.max_json_parts)
    if record.status is not BatchStatus.RECEIVING:
        await _compare(batches, batch_id, record.total, values)
        return batch_id
    total = await _stage(state, batch_id, upload, values)
    if not total:
        raise InvalidRequest("A batch must have at least one request.", field="body")
    await batches.start(batch_id, caller.owner, upload)
    return batch_id


def digest_of(value: dict[str, Any]) -> str:
    """SHA-256 of a line, whatever its formatting and order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class _Arrived:
    """Digests of the lines in the store, read page by page."""

    def __init__(self, batches: Batches, batch_id: str) -> None:
        self._batches = batches
        self._batch_id = batch_id
        self._first = 0
        self._page: list[str] = []

    async def at(self, index: int) -> str | None:
        if index >= self._first + len(self._page):
            self._first, self._page = index, await self._batches.digests(self._batch_id, index, _COMPARED_AT_ONCE)
        return self._page[index - self._first] if self._page else None


async def _stage(state: State, batch_id: str, upload: str, values: AsyncIterator[dict[str, Any]]) -> int:
    """Store the lines and return their number."""
    arrived, kept, waiting, index = _Arrived(state["store"].batches, batch_id), 0, list[Line](), 0
    is_known = True  # until the first line that differs: staging drops every stored line after that one
    async for value in values:
        digest = digest_of(value)
        is_known = is_known and await arrived.at(index) == digest
        if is_known:
            kept += 1
        else:
            try:
                waiting.append(await _decided(state, value, digest))
            except CynosureError as error:
                await state["store"].batches.stage(batch_id, upload, kept, waiting)
                raise at_line(error, index + 1) from error
        index += 1
        if len(waiting) == _STAGED_AT_ONCE:
            await state["store"].batches.stage(batch_id, upload, kept, waiting)
            kept, waiting = index, []
        if index % _LINES_A_TURN == 0:
            await asyncio.sleep(0)
    await state["store"].batches.stage(batch_id, upload, kept, waiting)
    return index


async def _decided(state: State, value: dict[str, Any], digest: str) -> Line:
    line = parsed(BatchLine, value)
    fields = line.model_dump(exclude_unset=True, exclude={"custom_id"})
    submission = await decide(state, GenerateRequest.model_validate(fields))
    request = attached(submission.request, submission.inputs)  # a batch stores each line with its pictures
    return Line(digest, line.custom_id, request, submission.cached_as)


async def _compare(batches: Batches, batch_id: str, total: int, values: AsyncIterator[dict[str, Any]]) -> None:
    """Refuse a body that differs from the one that started the batch.

    Raises:
        IdempotencyConflict: a line or the number of lines differs.
    """
    arrived, index = _Arrived(batches, batch_id), 0
    async for value in values:
        if await arrived.at(index) != digest_of(value):
            error = IdempotencyConflict("This Idempotency-Key started a batch with another request on this line.")
            raise at_line(error, index + 1)
        index += 1
    if index != total:
        raise IdempotencyConflict(f"This Idempotency-Key started a batch of {total} requests; this body has {index}.")
