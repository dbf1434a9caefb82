"""GET /healthz and /readyz."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from app.gateway.state import StateDep
from cynosure.contract import Problem
from cynosure.errors import NoWorker

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Check that the gateway is alive")
async def healthz() -> dict[str, str]:
    """Answers 200 as long as the process runs."""
    return {"status": "ok"}


@router.get("/readyz", summary="Check that jobs can be served", responses={503: {"model": Problem}})
async def readyz(
    state: StateDep,
    exclude: Annotated[
        Literal["workers"] | None, Query(description="Leave the workers out: is the gateway itself ready?")
    ] = None,
) -> dict[str, list[str]]:
    """Answers 200 once the store answers and, unless they are excluded, a worker has loaded its models."""
    await state["store"].jobs.ping()
    cards = await state["store"].fleet.cards()
    if not cards and exclude is None:
        raise NoWorker("No worker has loaded its models yet.", retry_after_s=2)
    return {"models": list(cards)}
