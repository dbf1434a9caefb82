"""/admin/models: loading and unloading models while the workers serve."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from app.gateway.answers import held_for
from app.gateway.door.auth import Admin
from app.gateway.json_bodies import JSONRoute
from app.gateway.state import State, StateDep
from cynosure.contract import LeavingJobs, LoadRequest, LoadState, ModelLoad, ModelLoads
from cynosure.errors import InvalidRequest, ModelNotLoaded

router = APIRouter(prefix="/admin/models", tags=["admin"], route_class=JSONRoute)

LOOK_S = 0.25
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
_HUB_ID = re.compile(r"[\w.-]+/(?P<name>[\w.-]+)@[0-9a-f]{40}")
Prefer = Annotated[str | None, Header(description="wait=SECONDS holds the answer until no worker has more to do")]


@router.get("", summary="What is loaded where")
async def list_loads(state: StateDep, caller: Admin, prefer: Prefer = None) -> ModelLoads:
    """Every model that a worker holds, loads or unloads, or could not load, with the reason."""
    return ModelLoads(models=tuple(await _settled(state, prefer, lambda load: True)))


@router.post("", status_code=202, summary="Load a model", responses={200: {"model": ModelLoad}})
async def add_model(
    request: LoadRequest, state: StateDep, caller: Admin, response: Response, prefer: Prefer = None
) -> ModelLoad:
    """Have every worker load a model while it serves, now and after its restarts, until the model is deleted.

    With `Prefer: wait` the answer is held until all workers have it: 200. If none of them could load it, the answer is
    422, and it is as if the model had never been added.
    """
    name, model = name_and_model(request.model)
    wanted = await state["store"].roster.add(name, model)
    [load] = await _settled(state, prefer, lambda load: load.name == name) or [ModelLoad(name=name, model=model)]
    states = {at.state for at in load.workers}
    if states == {LoadState.FAILED}:
        await state["store"].roster.give_up(name, wanted)
        raise ModelNotLoaded(f"{load.workers[0].reason}.", field="model")
    if states and LoadState.LOADING not in states:
        response.status_code = 200
    return load


@router.delete("/{name}", status_code=202, summary="Unload a model", responses={200: {"model": ModelLoad}})
async def remove_model(
    name: str,
    state: StateDep,
    caller: Admin,
    response: Response,
    jobs: Annotated[LeavingJobs, Query(description="What becomes of its accepted jobs.")] = LeavingJobs.FINISH,
    prefer: Prefer = None,
) -> ModelLoad:
    """Have every worker unload a model; from now on it takes no new jobs.

    Accepted jobs, also those of batches, are drawn first (`finish`), or wait until the model is loaded again (`wait`),
    or fail with `model_removed` (`refuse`); those being drawn are finished in any case. With `Prefer: wait` the answer
    is held until the model has left: 200. A model that no worker holds (`CYNOSURE_ACCEPT_WITHOUT_WORKER`) is forgotten,
    if no jobs wait for it or they are to `wait`.
    """
    await state["store"].roster.remove(name, jobs)
    left = await _settled(state, prefer, lambda load: load.name == name)
    if not left:
        response.status_code = 200
    return left[0] if left else ModelLoad(name=name, jobs=jobs)


def name_and_model(asked: str) -> tuple[str, str]:
    """The name under which a model is to be served, and what is to be opened.

    Raises:
        InvalidRequest: there is no name, or it is none that addresses can hold.
    """
    before, equals, after = asked.partition("=")
    has_name = bool(equals) and "/" not in before
    model = after if has_name else asked
    on_hub = _HUB_ID.fullmatch(model)
    name = before if has_name else on_hub["name"] if on_hub else model.rstrip("/").rpartition("/")[2]
    if not model or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"'{name[:100]}' can't be a model's name, which has letters, digits, '.', '_' and '-', 100 at most: give "
            "one with NAME=FOLDER.",
            field="model",
        )
    return name, model


async def _settled(state: State, prefer: str | None, is_meant: Callable[[ModelLoad], bool]) -> Sequence[ModelLoad]:
    """The models that are meant; if the client waits, once no worker loads or unloads one of them, or in time."""
    until = time.monotonic() + (held_for(state, prefer) or 0.0)
    while True:
        loads = [load for load in await state["store"].roster.loads() if is_meant(load)]
        is_busy = any(load.jobs or any(at.state.is_passing for at in load.workers) for load in loads)
        state["store"].fleet.look_again()
        if not is_busy or time.monotonic() >= until or state["store"].news.is_closing:
            return loads
        await asyncio.sleep(LOOK_S)
