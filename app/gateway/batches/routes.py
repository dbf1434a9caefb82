"""POST and GET /batches, GET and DELETE /batches/{id}, its results and its pictures."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from stream_zip import async_stream_zip

from app.gateway.addresses import AddressDep
from app.gateway.batches.results import batch_of, members_of, results_of
from app.gateway.batches.upload import receive
from app.gateway.door.auth import Reader, Submitter
from app.gateway.formats import Accept, best
from app.gateway.state import State, StateDep
from app.gateway.submission import IdempotencyKey
from cynosure.batches import Batch, BatchList, BatchStatus
from cynosure.contract import MAX_BATCH_LINES, Problem
from cynosure.errors import JobExpired, JobNotFound

router = APIRouter(prefix="/batches", tags=["batches"])
_NDJSON, _ZIP = "application/x-ndjson", "application/zip"
_LINE = {"$ref": "#/components/schemas/BatchLine"}
_CANCELLED_AT_ONCE = 16
_EXAMPLE = [{"class_label": "bag", "seed": 1, "custom_id": "first"}, {"class_label": "coat", "seed": 2}]
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            # The first is what Swagger UI offers; it would put NDJSON into quotes.
            "application/json": {
                "schema": {"type": "array", "items": _LINE, "maxItems": MAX_BATCH_LINES},
                "example": _EXAMPLE,
            },
            _NDJSON: {"schema": {}, "example": "".join(json.dumps(line) + "\n" for line in _EXAMPLE)},
        },
    }
}


@router.post(
    "",
    status_code=202,
    summary="Draw thousands of pictures",
    openapi_extra=_BODY,
)
async def post_batch(
    request: Request,
    state: StateDep,
    caller: Submitter,
    address: AddressDep,
    idempotency_key: IdempotencyKey = None,
) -> Batch:
    """Up to 10,000 requests as NDJSON or as a JSON array; each may have a `custom_id`, which the results repeat.

    All lines are checked as they arrive, and an error names the line; the batch starts only if all are valid. A client
    that was cut off sends the same body with the same `Idempotency-Key`: the upload resumes where it stopped.
    """
    batch_id = await receive(state, caller, request.stream(), idempotency_key)
    return batch_of(await state["store"].batches.look(batch_id, caller.sees), address.root)


@router.get("", summary="List your batches")
async def list_batches(
    state: StateDep,
    caller: Reader,
    address: AddressDep,
    status: Annotated[BatchStatus | None, Query(description="Only batches in this state.")] = None,
    cursor: Annotated[str | None, Query(max_length=100, description="`next_cursor` of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Maximum number of batches on a page.")] = 20,
) -> BatchList:
    """The batches that this API key posted, newest first, as long as they are kept.

    Only those whose lines have all arrived. A page may be shorter than `limit` if batches of the status are rare; the
    last page has a null `next_cursor`.
    """
    page = await state["store"].batches.page(caller.owner, status=status, cursor=cursor, limit=limit)
    return BatchList(
        batches=tuple(batch_of(record, address.root) for record in page.records), next_cursor=page.next_cursor
    )


@router.get("/{batch_id}", summary="A batch's counts")
async def get_batch(batch_id: str, state: StateDep, caller: Reader, address: AddressDep) -> Batch:
    """How many of the batch's requests are in which state."""
    return batch_of(await state["store"].batches.look(batch_id, caller.sees), address.root)


@router.get(
    "/{batch_id}/results",
    summary="Results, one per line",
    response_class=StreamingResponse,
    responses={200: {"content": {_NDJSON: {}}}, 406: {"model": Problem}},
)
async def get_results(
    batch_id: str,
    state: StateDep,
    caller: Reader,
    address: AddressDep,
    first_line: Annotated[int, Query(ge=1, le=MAX_BATCH_LINES, description="First line, counted from 1.")] = 1,
    limit: Annotated[int, Query(ge=1, le=MAX_BATCH_LINES)] = MAX_BATCH_LINES,
    accept: Accept = None,
) -> StreamingResponse:
    """NDJSON in the order of the lines, finished or not: status, job, URLs of the pictures, error."""
    media_type = best(accept, [_NDJSON])
    record = await state["store"].batches.look(batch_id, caller.sees)
    return StreamingResponse(results_of(state, record, first_line, limit, address.root), media_type=media_type)


@router.get(
    "/{batch_id}/images.zip",
    summary="A batch's pictures",
    response_class=StreamingResponse,
    responses={200: {"content": {_ZIP: {}}}, 406: {"model": Problem}},
)
async def get_images(batch_id: str, state: StateDep, caller: Reader, accept: Accept = None) -> StreamingResponse:
    """A ZIP, streamed, with every picture finished so far as `CUSTOM_ID-INDEX.FORMAT`.

    A line without a `custom_id` has its number, of five digits, in its place. Characters that a file system may refuse
    become `_`; a line whose name an earlier one has, has its number behind it: `CUSTOM_ID~LINE-INDEX.FORMAT`.
    """
    media_type = best(accept, [_ZIP])
    record = await state["store"].batches.look(batch_id, caller.sees)
    headers = {"Content-Disposition": f'attachment; filename="{batch_id}.zip"'}
    members = async_stream_zip(members_of(state, record))
    return StreamingResponse(members, media_type=media_type, headers=headers)


@router.delete("/{batch_id}", summary="Cancel a batch")
async def cancel_batch(batch_id: str, state: StateDep, caller: Submitter, address: AddressDep) -> Batch:
    """Cancel the unfinished lines; finished ones stay."""
    await state["store"].batches.look(batch_id, caller.sees)
    job_ids = await state["store"].batches.cancel(batch_id)
    for first in range(0, len(job_ids), _CANCELLED_AT_ONCE):
        page = job_ids[first : first + _CANCELLED_AT_ONCE]
        await asyncio.gather(*(_cancel(state, job_id, caller.sees) for job_id in page))
    return batch_of(await state["store"].batches.look(batch_id, caller.sees), address.root)


async def _cancel(state: State, job_id: str, viewer: str) -> None:
    with suppress(JobExpired, JobNotFound):  # it has ended, and is no longer kept
        await state["store"].jobs.cancel(job_id, viewer)
