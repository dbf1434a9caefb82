"""POST /generate."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Response

from app.gateway.door.auth import Submitter
from app.gateway.formats import wanted
from app.gateway.state import StateDep
from app.gateway.submission import IdempotencyKey, Prefer, answer, enqueue, resolved
from cynosure.contract import GenerateRequest, Job, OutputFormat
from cynosure.errors import InvalidRequest

router = APIRouter(tags=["generate"])


@router.post(
    "/generate",
    status_code=202,
    response_model=Job,
    summary="Draw pictures",
    responses={200: {"model": Job, "content": {format.media_type: {} for format in OutputFormat}}},
)
async def generate(
    asked: GenerateRequest,
    state: StateDep,
    caller: Submitter,
    prefer: Prefer = None,
    accept: Annotated[str | None, Header()] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept a job.

    `Prefer: wait=SECONDS` waits for it; `Accept: image/png` (or `image/jpeg`, `image/webp`) answers with the picture.
    """
    as_picture = wanted(accept, asked.output_format)
    if as_picture and asked.num_images > 1:
        raise InvalidRequest("Accept: image/… answers with one picture; ask for one, or for JSON.", field="num_images")
    request, cached_as = await resolved(state, asked)
    job_id = await enqueue(state, caller, request, asked, idempotency_key, cached_as)
    return await answer(state, caller, job_id, prefer, as_picture=as_picture)
