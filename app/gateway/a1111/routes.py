"""The routes below /sdapi/v1 that clients of A1111 use."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from app.gateway.a1111.drawing import drawn, served_name
from app.gateway.a1111.infotext import parsed_infotext
from app.gateway.a1111.progress import latest, progress_of
from app.gateway.a1111.samplers import samplers_of, schedulers
from app.gateway.a1111.shapes import PREVIEW_EVERY, ImageToImage, Lenient, Options, TextToImage, title_of
from app.gateway.door.auth import Reader, Submitter
from app.gateway.errors.problems import A1111_PREFIX
from app.gateway.errors.safe_json import SafeJSONResponse
from app.gateway.json_bodies import JSONRoute
from app.gateway.state import StateDep
from app.gateway.submission import served
from cynosure.contract import Base64Image
from cynosure.errors import UnknownModel
from cynosure.metadata import texts_of
from cynosure.resolving import choose

router = APIRouter(prefix=A1111_PREFIX.rstrip("/"), tags=["a1111"], route_class=JSONRoute)


class PngInfo(Lenient):
    """The body of POST /sdapi/v1/png-info."""

    image: Base64Image


@router.post("/txt2img", summary="Draw pictures (A1111's format)")
async def txt2img(params: TextToImage, request: Request, state: StateDep, caller: Submitter) -> JSONResponse:
    """Answers with `batch_size` times `n_iter` pictures as base64 PNG, `parameters`, and `info`, a JSON text.

    `info` lists the fields of the request that had no effect as `ignored`. For a class model the prompt is the name of
    a label. A client that drops the connection cancels its job.
    """
    return JSONResponse(await drawn(params, request, state, caller))


@router.post("/img2img", summary="Redraw a picture (A1111's format)")
async def img2img(params: ImageToImage, request: Request, state: StateDep, caller: Submitter) -> JSONResponse:
    """As txt2img, from a picture: all of it, as far as `denoising_strength` says, or only where `mask` is white."""
    return JSONResponse(await drawn(params, request, state, caller))


@router.get("/progress", summary="Progress of the latest call (A1111's format)")
async def progress(
    state: StateDep,
    caller: Reader,
    skip_current_image: Annotated[bool, Query(description="Leave the preview out.")] = False,
) -> dict[str, Any]:
    """The latest txt2img or img2img of this API key that is not answered yet, with a preview of its first picture.

    Callers without a key count as one.
    """
    return await progress_of(state, await latest(state, caller), with_preview=not skip_current_image)


async def _cancel_latest(state: StateDep, caller: Submitter) -> dict[str, Any]:
    """Cancels the job that GET progress shows; the call that waits for it is answered with the error `job_cancelled`.

    All pictures of a call are drawn at once, so skip and interrupt are the same.
    """
    seen = await latest(state, caller)
    if seen is not None:
        await state["store"].jobs.cancel(seen.record.id, caller.owner)
    return {}


for _path in ("/interrupt", "/skip"):
    router.add_api_route(
        _path, _cancel_latest, methods=["POST"], summary="Cancel the latest call (A1111's format)", name=_path[1:]
    )


@router.get("/options", summary="Get options (A1111's format)")
async def get_options(state: StateDep, caller: Reader) -> dict[str, Any]:
    """The options that have an effect here, with the model that this API key chose or that a prompt goes to."""
    cards, name = await state["store"].fleet.cards(), await state["store"].sessions.chosen(caller.owner)
    if name is None and cards:
        name = choose(cards, model=None, prompted=True, labels=[]).name
    card = cards.get(name or "")
    return {
        "sd_model_checkpoint": title_of(card) if card else name,
        "sd_checkpoint_hash": card.digest if card else "",
        "CLIP_stop_at_last_layers": 1,
        "show_progress_every_n_steps": PREVIEW_EVERY,
        "samples_format": "png",
    }


@router.post("/options", summary="Choose the model (A1111's format)")
async def set_options(options: Options, state: StateDep, caller: Submitter) -> JSONResponse:
    """Sets the model that this API key's later calls draw with, unless they name one; there are no other options.

    `ignored` lists the rest. Callers without a key choose for all of them.
    """
    if options.sd_model_checkpoint:
        try:
            name = served_name(options.sd_model_checkpoint, await served(state), state)
        except UnknownModel as error:
            error.field = "sd_model_checkpoint"
            raise
        await state["store"].sessions.choose(caller.owner, name)
    return SafeJSONResponse({"ignored": options.ignored()})


@router.get("/samplers", summary="List samplers (A1111's format)")
async def get_samplers(state: StateDep, caller: Reader) -> list[dict[str, Any]]:
    """The samplers of all models, by A1111's names where it has them."""
    return samplers_of((await state["store"].fleet.cards()).values())


@router.get("/schedulers", summary="List schedulers (A1111's format)")
async def get_schedulers(caller: Reader) -> list[dict[str, Any]]:
    """The schedulers of A1111 that there are here; not every sampler takes all of them."""
    return schedulers()


@router.get("/loras", summary="List LoRAs (A1111's format)")
async def get_loras(state: StateDep, caller: Reader) -> list[dict[str, Any]]:
    """The LoRAs that a model can use; `path` is the name, since no files are shown."""
    cards = (await state["store"].fleet.cards()).values()
    usable = {lora.name: lora for card in cards for lora in card.loras if lora.fault is None}
    return [
        {
            "name": lora.name,
            "alias": lora.name,
            "path": lora.name,
            "metadata": {"sshs_model_hash": lora.digest, "trigger_words": lora.trigger_words},
        }
        for lora in usable.values()
    ]


@router.get("/sd-models", summary="List models (A1111's format)")
async def get_models(state: StateDep, caller: Reader) -> list[dict[str, Any]]:
    """Every model that a live worker holds; `filename` is its name, since no files are shown."""
    return [
        {
            "title": title_of(card),
            "model_name": card.name,
            "hash": card.digest[:10],
            "sha256": card.digest,
            "filename": card.name,
            "config": None,
        }
        for card in (await state["store"].fleet.cards()).values()
    ]


@router.post("/png-info", summary="Read a picture's parameters (A1111's format)")
async def png_info(params: PngInfo, caller: Reader) -> JSONResponse:
    """The text `parameters` of a PNG, JPEG or WebP as `info`, and its fields as `parameters`."""
    return SafeJSONResponse(await run_in_threadpool(_texts_in, params.image))


def _texts_in(picture: str) -> dict[str, Any]:
    """The body of the answer to POST png-info. Slow."""
    texts = texts_of(picture, "image")
    info = texts.get("parameters", "")
    return {"info": info, "items": texts, "parameters": parsed_infotext(info) if info else {}}
