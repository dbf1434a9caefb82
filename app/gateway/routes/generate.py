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
    request: GenerateRequest,
    state: StateDep,
    caller: Submitter,
    prefer: Prefer = None,
    accepted_types: Annotated[str | None, Header(alias="accept")] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept a job.

    With `Prefer: wait=SECONDS` the answer waits for it; with `Accept: image/png` (or `image/jpeg`, `image/webp`) the
    answer is the picture itself.
    """
    as_picture = wanted(accepted_types, request.output_format)
    if as_picture and request.num_images > 1:
        raise InvalidRequest(
            "An answer with Accept: image/… holds only one picture: set num_images to 1, or accept application/json.",
            field="num_images",
        )
    submission = await decide(state, request)
    job_id = await accept(state, caller, await keyed(submission, idempotency_key, request))
    return await answer(state, caller, job_id, prefer, as_picture=as_picture)
