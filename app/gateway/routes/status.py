"""GET /status."""

from __future__ import annotations

from fastapi import APIRouter

from app.gateway.door.auth import Reader
from app.gateway.state import StateDep
from cynosure import __version__
from cynosure.contract import ModelStatus, ServiceStatus

router = APIRouter(tags=["health"])


@router.get("/status", summary="Look at workers and queues")
async def status(state: StateDep, caller: Reader) -> ServiceStatus:
    """Live workers, running jobs, and for each model its workers, its waiting jobs and its pace."""
    store = state["store"]
    workers, cards = await store.fleet.workers(), await store.fleet.cards()
    flows, running = await store.vitals.flows(list(workers.by_model))
    return ServiceStatus(
        version=__version__,
        workers=workers.count,
        running=running,
        models=tuple(
            ModelStatus(
                name=name,
                workers=holders,
                waiting=sum(flow.queue.waiting.values()),
                waiting_by_priority=dict(flow.queue.waiting),
                pictures_per_second=flow.pace.pictures_per_second,
                evaluations_per_second=flow.pace.evaluations_per_second,
                recent=flow.recent,
                reviewed=name in cards and cards[name].review is not None,
            )
            for (name, holders), flow in zip(workers.by_model.items(), flows, strict=True)
        ),
    )
