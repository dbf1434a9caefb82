"""POST /plan."""

from __future__ import annotations

from fastapi import APIRouter

from app.gateway.door.auth import Submitter
from app.gateway.state import StateDep
from app.gateway.submission import resolved
from cynosure.contract import GenerateRequest, Plan

router = APIRouter(tags=["generate"])

TIMEOUT_S = 10.0


@router.post("/plan", summary="What a request would take")
async def plan(asked: GenerateRequest, state: StateDep, caller: Submitter) -> Plan:
    """The exact timesteps and noise levels, rows through each network, FLOP, time and warnings; nothing is drawn."""
    request, _ = await resolved(state, asked)
    return await state["inquiries"].plan(request, timeout_s=TIMEOUT_S)
