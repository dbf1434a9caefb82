"""GET /models."""

from __future__ import annotations

from fastapi import APIRouter

from app.gateway.door.auth import Reader
from app.gateway.state import StateDep
from app.gateway.submission import named_card
from cynosure.contract import ModelCard, ModelList

router = APIRouter(prefix="/models", tags=["models"])


@router.get("", summary="List models")
async def list_models(state: StateDep, caller: Reader) -> ModelList:
    """The models of all live workers, with labels, modes, samplers, defaults and limits.

    With `CYNOSURE_ACCEPT_WITHOUT_WORKER` also those that no worker holds at present: `served` is false.
    """
    return ModelList(models=tuple((await state["store"].fleet.cards()).values()))


@router.get("/{name}", summary="Get a model")
async def get_model(name: str, state: StateDep, caller: Reader) -> ModelCard:
    """The model's card; an alias of it will do."""
    return await named_card(state, name)
