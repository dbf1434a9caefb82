"""POST /plan."""

from __future__ import annotations

from fastapi import APIRouter

from app.gateway.door.auth import Submitter
from app.gateway.json_bodies import JSONRoute
from app.gateway.state import StateDep
from app.gateway.submission import card_of, decide
from cynosure.contract import GenerateRequest, Plan
from cynosure.errors import NoWorker
from cynosure.resolving import attached

router = APIRouter(tags=["generate"], route_class=JSONRoute)

TIMEOUT_S = 10.0


@router.post("/plan", summary="Plan a request")
async def plan(request: GenerateRequest, state: StateDep, caller: Submitter) -> Plan:
    """The exact timesteps and noise levels, rows through each network, FLOP, time and warnings; nothing is drawn."""
    submission = await decide(state, request)
    if not (await card_of(state, submission.request.model)).served:
        raise NoWorker(
            f"No worker holds '{submission.request.model}' at present, and only one can plan.", retry_after_s=5
        )
    resolved = attached(submission.request, submission.inputs)
    return await state["store"].plans.plan(resolved, timeout_s=TIMEOUT_S)
