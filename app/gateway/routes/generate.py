"""POST /generate."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Response

from app.gateway.answers import Prefer, answer
from app.gateway.door.auth import Submitter
from app.gateway.formats import wanted
from app.gateway.state import StateDep
from app.gateway.submission import IdempotencyKey, accept, decide, keyed
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
    accepted_types: Annotated[str | None, Header(alias="accept")] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept a job.

    `Prefer: wait=SECONDS` waits for it; `Accept: image/png` (or `image/jpeg`, `image/webp`) answers with the picture.
    """
    as_picture = wanted(accepted_types, asked.output_format)
    if as_picture and asked.num_images > 1:
        raise InvalidRequest("Accept: image/… answers with one picture; ask for one, or for JSON.", field="num_images")
    submission = await decide(state, asked)
    job_id = await accept(state, caller, await keyed(submission, idempotency_key, asked))
    return await answer(state, caller, job_id, prefer, as_picture=as_picture)
