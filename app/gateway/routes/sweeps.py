"""POST /sweeps."""

from __future__ import annotations

from fastapi import APIRouter, Response

from app.gateway.answers import Prefer, answer
from app.gateway.door.auth import Submitter
from app.gateway.state import StateDep
from app.gateway.submission import IdempotencyKey, accept, card_of, draw_seed, keyed, submission_of
from cynosure.contract import Job, SweepRequest
from cynosure.resolving import resolve_sweep

router = APIRouter(tags=["generate"])


@router.post(
    "/sweeps",
    status_code=202,
    response_model=Job,
    summary="Draw a grid of pictures",
    responses={200: {"model": Job}},
)
async def sweep(
    asked: SweepRequest,
    state: StateDep,
    caller: Submitter,
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept labels or prompts × scales × seeds as one job, with a contact sheet.

    Pictures that differ in scale alone share the steps before `guidance_interval`.
    """
    prompted = bool(asked.prompts) or asked.request.prompt is not None
    card = await card_of(state, asked.request.model, prompted=prompted)
    request = resolve_sweep(asked, card, seed=draw_seed())
    is_seeded = bool(asked.seeds) or asked.request.seed is not None
    submission = await submission_of(state, request, card, is_seeded=is_seeded)
    job_id = await accept(state, caller, await keyed(submission, idempotency_key, asked))
    return await answer(state, caller, job_id, prefer)
