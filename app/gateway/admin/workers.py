"""/admin/workers: which workers there are, and draining one."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Header, Response

from app.gateway.answers import held_for
from app.gateway.door.auth import Admin
from app.gateway.json_bodies import JSONRoute
from app.gateway.state import State, StateDep
from cynosure.contract import WorkerList, WorkerStatus

router = APIRouter(prefix="/admin/workers", tags=["admin"], route_class=JSONRoute)

LOOK_S = 0.25
Prefer = Annotated[str | None, Header(description="wait=SECONDS holds the answer until the worker has ended")]


@router.get("", summary="Which workers there are")
async def list_workers(state: StateDep, caller: Admin) -> WorkerList:
    """Every live worker: its device, its models, and how much it has to do."""
    return WorkerList(workers=tuple(await state["store"].fleet.statuses()))


@router.post("/{name}/drain", status_code=202, summary="Drain a worker", responses={200: {"model": WorkerStatus}})
async def drain_worker(
    name: str, state: StateDep, caller: Admin, response: Response, prefer: Prefer = None
) -> WorkerStatus:
    """Have a worker take no more jobs, and end.

    Jobs that it has not begun go back to the queue at once; the others may finish within its
    `CYNOSURE_WORKER_DRAIN_S`, or else go back too. With `Prefer: wait` the answer is held until it has ended: 200.
    """
    status = await state["store"].fleet.drain(name)
    until = time.monotonic() + (held_for(state, prefer) or 0.0)
    while (now := await _status(state, name)) is not None and time.monotonic() < until:
        if state["store"].news.is_closing:
            break
        await asyncio.sleep(LOOK_S)
    if now is None:
        response.status_code = 200
    return now or status


async def _status(state: State, name: str) -> WorkerStatus | None:
    """A worker's; `None` if it has ended."""
    return next((status for status in await state["store"].fleet.statuses() if status.name == name), None)
