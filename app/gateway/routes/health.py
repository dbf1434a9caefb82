"""GET /healthz and /readyz."""

from __future__ import annotations

from fastapi import APIRouter

from app.gateway.state import StateDep
from cynosure.contract import Problem
from cynosure.errors import NoWorker

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Is the gateway alive")
async def healthz() -> dict[str, str]:
    """200 while the process answers."""
    return {"status": "ok"}


@router.get("/readyz", summary="Can jobs be served", responses={503: {"model": Problem}})
async def readyz(state: StateDep) -> dict[str, list[str]]:
    """200 once the store answers and a worker has its packs loaded."""
    await state["store"].jobs.ping()
    cards = await state["store"].fleet.cards()
    if not cards:
        raise NoWorker("No worker has its models loaded yet.", retry_after_s=2)
    return {"models": list(cards)}
