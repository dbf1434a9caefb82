"""POST /plan."""

from __future__ import annotations

import secrets

from fastapi import APIRouter

from app.gateway.state import StateDep
from app.gateway.submission import card_of
from cynosure.contract import GenerateRequest, Plan, Problem
from cynosure.resolving import resolve

router = APIRouter(tags=["generate"])

TIMEOUT_S = 10.0


@router.post(
    "/plan",
    summary="What a request would take",
    responses={422: {"model": Problem}, 503: {"model": Problem}},
)
async def plan(asked: GenerateRequest, state: StateDep) -> Plan:
    """The exact timesteps and noise levels, rows through each network, FLOP, time and warnings; nothing is drawn."""
    request = resolve(asked, await card_of(state, asked.model), seed=secrets.randbits(63))
    return await state["inquiries"].plan(request, timeout_s=TIMEOUT_S)
