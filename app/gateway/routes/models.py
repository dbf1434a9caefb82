"""GET /models and /loras."""

from __future__ import annotations

from fastapi import APIRouter

from app.gateway.door.auth import Reader
from app.gateway.state import StateDep
from app.gateway.submission import named_card
from cynosure.contract import LoraInfo, LoraList, LoraOnCard, ModelCard, ModelList

router = APIRouter(tags=["models"])


@router.get("/models", summary="List models")
async def list_models(state: StateDep, caller: Reader) -> ModelList:
    """The models of all live workers, with labels, modes, samplers, defaults and limits.

    With `CYNOSURE_ACCEPT_WITHOUT_WORKER` also those that no worker holds at present: `served` is false.
    """
    return ModelList(models=tuple((await state["store"].fleet.cards()).values()))


@router.get("/models/{name}", summary="Get a model")
async def get_model(name: str, state: StateDep, caller: Reader) -> ModelCard:
    """The model's card; an alias of it will do."""
    return await named_card(state, name)


@router.get("/loras", summary="List LoRAs")
async def list_loras(state: StateDep, caller: Reader) -> LoraList:
    """The LoRAs in the workers' folder, with the models that can use each; of one that none can, why."""
    seen: dict[str, dict[str, LoraOnCard]] = {}
    for model, card in (await state["store"].fleet.cards()).items():
        for lora in card.loras:
            seen.setdefault(lora.name, {})[model] = lora
    return LoraList(loras=tuple(_overview(by_model) for _, by_model in sorted(seen.items())))


def _overview(by_model: dict[str, LoraOnCard]) -> LoraInfo:
    usable = {model: lora for model, lora in by_model.items() if lora.fault is None}
    shown = next(iter((usable or by_model).values()))
    return LoraInfo(**shown.model_dump(), models=tuple(usable))
