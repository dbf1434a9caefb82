"""POST /generate."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import APIRouter, Header, Response

from app.gateway.state import StateDep
from app.gateway.submission import answer, card_of, enqueue
from cynosure.contract import GenerateRequest, Job, Problem
from cynosure.errors import InvalidRequest
from cynosure.resolving import resolve, result_key

router = APIRouter(tags=["generate"])


@router.post(
    "/generate",
    status_code=202,
    response_model=Job,
    summary="Draw pictures",
    responses={200: {"model": Job, "content": {"image/png": {}}}, 422: {"model": Problem}, 503: {"model": Problem}},
)
async def generate(
    asked: GenerateRequest,
    state: StateDep,
    prefer: Annotated[str | None, Header(description="wait=SECONDS holds the answer until done")] = None,
    accept: Annotated[str | None, Header()] = None,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> Response:
    """Accept a job. `Prefer: wait=SECONDS` waits for it; `Accept: image/png` answers with the first picture itself."""
    as_picture = "image/png" in (accept or "")
    if as_picture and asked.num_images > 1:
        raise InvalidRequest(
            "Accept: image/png answers with one picture; ask for one, or for JSON.", field="num_images"
        )
    card = await card_of(state, asked.model)
    request = resolve(asked, card, seed=secrets.randbits(63))
    may_be_cached = asked.seed is not None and asked.use_cache and not asked.telemetry
    job_id = await enqueue(
        state, request, asked, idempotency_key, result_key(request, card.digest) if may_be_cached else None
    )
    return await answer(state, job_id, prefer, as_picture=as_picture)
