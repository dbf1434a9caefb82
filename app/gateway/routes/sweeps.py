"""POST /sweeps."""

from __future__ import annotations

from fastapi import APIRouter, Response

from app.gateway.addresses import AddressDep
from app.gateway.answers import Prefer, answer
from app.gateway.door.auth import Submitter
from app.gateway.json_bodies import JSONRoute
from app.gateway.state import StateDep
from app.gateway.submission import IdempotencyKey, accept, card_of, draw_seed, keyed, submission_of
from cynosure.contract import Job, SweepRequest
from cynosure.resolving import resolve_sweep

router = APIRouter(tags=["generate"], route_class=JSONRoute)


@router.post(
    "/sweeps",
    status_code=202,
    response_model=Job,
    summary="Draw a grid of pictures",
    responses={200: {"model": Job}},
)
async def sweep(
    grid: SweepRequest,
    state: StateDep,
    caller: Submitter,
    address: AddressDep,
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept labels or prompts × scales × seeds as one job, with a contact sheet.

    Pictures that differ only in scale share the steps before `guidance_interval`.
    """
    prompted = bool(grid.prompts) or grid.request.prompt is not None
    card = await card_of(state, grid.request.model, prompted=prompted)
    request = resolve_sweep(grid, card, seed=draw_seed())
    is_seeded = bool(grid.seeds) or grid.request.seed is not None
    submission = await submission_of(state, request, card, is_seeded=is_seeded)
    job_id = await accept(state, caller, await keyed(submission, idempotency_key, grid))
    return await answer(state, caller, address, job_id, prefer)
