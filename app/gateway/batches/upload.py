"""Receiving a batch: every line is looked at as it arrives, and nothing is drawn until all of them have."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

from pydantic import ValidationError

from app.gateway.batches.body import at_line, objects_of
from app.gateway.errors.refusals import refusal_of
from app.gateway.state import State
from app.gateway.submission import decide
from cynosure.batches import BatchLine, BatchStatus
from cynosure.contract import GenerateRequest
from cynosure.errors import CynosureError, IdempotencyConflict, InvalidRequest
from cynosure.resolving import attached
from jobs.accounts.api_keys import Caller
from jobs.batches import Batches, Line
from jobs.queue.record import new_job_id

_STAGED_AT_ONCE = 100
_COMPARED_AT_ONCE = 500
_LINES_A_TURN = 20  # a line takes about a millisecond to decide; others want the gateway too


async def receive(state: State, caller: Caller, chunks: AsyncIterator[bytes], idempotency_key: str | None) -> str:
    """Take the body, start the batch, and return its id.

    A client that died comes back with the same key and sends the same body: the lines that had arrived are compared
    and not looked at again, and the batch goes on where it was. Where it was started already, it stays as it is.

    Raises:
        InvalidRequest, MalformedBody, BodyTooLarge: naming the line.
        IdempotencyConflict: the key started another batch.
    """
    batches, upload = state["store"].batches, secrets.token_urlsafe(8)
    batch_id = await batches.open(new_job_id(), caller.owner, upload, idempotency_key)
    record = await batches.look(batch_id, caller.owner)
    settings = state["settings"]
    found = objects_of(chunks, max_line_bytes=settings.max_body_bytes, max_parts=settings.max_json_parts)
    if record.status is not BatchStatus.RECEIVING:
        await _compare(batches, batch_id, record.total, found)
        return batch_id
    total = await _stage(state, batch_id, upload, found)
    if not total:
        raise InvalidRequest("A batch has at least one request.", field="body")
    await batches.start(batch_id, upload)
    return batch_id


def digest_of(value: dict[str, Any]) -> str:
    """SHA-256 of a line, however it is spelt."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class _Arrived:
    """Digests of the lines that are in the store, read as they are needed."""

    def __init__(self, batches: Batches, batch_id: str) -> None:
        self._batches = batches
        self._batch_id = batch_id
        self._first = 0
        self._page: list[str] = []

    async def at(self, index: int) -> str | None:
        if index >= self._first + len(self._page):
            self._first, self._page = index, await self._batches.digests(self._batch_id, index, _COMPARED_AT_ONCE)
        return self._page[index - self._first] if self._page else None


async def _stage(state: State, batch_id: str, upload: str, found: AsyncIterator[dict[str, Any]]) -> int:
    """Store the lines; returns how many there are."""
    arrived, kept, waiting, index = _Arrived(state["store"].batches, batch_id), 0, list[Line](), 0
    is_known = True  # until the first line that differs: staging drops whatever stood behind that one
    async for value in found:
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
    try:
        asked = BatchLine.model_validate(value)
    except ValidationError as error:
        raise refusal_of(error, BatchLine) from error
    fields = asked.model_dump(exclude_unset=True, exclude={"custom_id"})
    submission = await decide(state, GenerateRequest.model_validate(fields))
    request = attached(submission.request, submission.inputs)  # in a batch's list a line has its pictures with it
    return Line(digest, asked.custom_id, request, submission.cached_as)


async def _compare(batches: Batches, batch_id: str, total: int, found: AsyncIterator[dict[str, Any]]) -> None:
    """Refuse a body that is not the one that the batch was started with."""
    arrived, index = _Arrived(batches, batch_id), 0
    async for value in found:
        if await arrived.at(index) != digest_of(value):
            error = IdempotencyConflict("This Idempotency-Key started a batch that has another request here.")
            raise at_line(error, index + 1)
        index += 1
    if index != total:
        raise IdempotencyConflict(f"This Idempotency-Key started a batch of {total} requests; these are {index}.")
