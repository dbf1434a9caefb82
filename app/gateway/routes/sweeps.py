"""POST /sweeps."""

from __future__ import annotations

from fastapi import APIRouter, Response

from app.gateway.addresses import AddressDep
from app.gateway.answers import Prefer, answer
from app.gateway.door.auth import Submitter
from app.gateway.json_bodies import JSONRoute
from app.gateway.state import StateDep
from app.gateway.submission import IdempotencyKey, accept, draw_seed, keyed, served, submission_of
from cynosure.contract import Job, SweepRequest
from cynosure.resolving import choose, fields_of, labels_in, resolve_sweep, with_real_names

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
    cards = await served(state)
    is_seeded = bool(grid.seeds) or grid.request.seed is not None
    with fields_of(grid):
        shared = with_real_names(grid.request, cards, state["settings"].model_aliases)
        prompted = bool(grid.prompts) or shared.prompt is not None
        labels = [*labels_in(shared), *grid.class_labels]
        card = choose(cards, model=shared.model, prompted=prompted, labels=labels)
        request = resolve_sweep(grid.model_copy(update={"request": shared}), card, seed=draw_seed())
        submission = await submission_of(state, request, card, is_seeded=is_seeded)
    accepted = await accept(state, caller, await keyed(submission, idempotency_key, grid), "sweeps")
    return await answer(state, caller, address, accepted, prefer)
