"""POST /v1/images/generations, edits and variations, GET /v1/models: the routes that OpenAI's clients use."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import FormData

from app.gateway.addresses import address_of
from app.gateway.answers import unless_gone
from app.gateway.door.auth import Reader, Submitter
from app.gateway.json_bodies import JSONRoute
from app.gateway.openai.forms import EDIT_FORM, MAX_PARTS, VARIATION_FORM, edit_of, variation_of
from app.gateway.openai.shapes import ImageFields, ImageParams, answer_of, as_size, card_for, request_of
from app.gateway.openai.work import Drawing, data_of, events_of
from app.gateway.state import State, StateDep
from app.gateway.submission import IdempotencyKey, accept, decide, keyed, named_card, served
from cynosure.contract import MAX_BASE64_IMAGE_LENGTH
from jobs.accounts.api_keys import Caller

router = APIRouter(prefix="/v1", tags=["openai"], route_class=JSONRoute)
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"description": "Pictures", "content": {"application/json": {}, "text/event-stream": {}}}
}


@router.post("/images/generations", summary="Draw pictures (OpenAI's format)", responses=_ANSWER)
async def generations(
    params: ImageParams, request: Request, state: StateDep, caller: Submitter, idempotency_key: IdempotencyKey = None
) -> Response:
    """Answers with pictures as base64 or URLs, or with `stream` as events.

    Every field of POST /generate is accepted along with OpenAI's own (use `extra_body` in their client). For a class
    model the prompt is the name of a label. A client that drops the connection cancels its job, unless the request has
    an `Idempotency-Key`: the same request with the same key then takes the job up again.
    """
    return await _draw(params, request, state, caller, idempotency_key, kind="image_generation")


@router.post(
    "/images/edits",
    summary="Redraw a picture (OpenAI's format)",
    responses=_ANSWER,
    openapi_extra=EDIT_FORM,
)
async def edits(
    request: Request, state: StateDep, caller: Submitter, idempotency_key: IdempotencyKey = None
) -> Response:
    """Takes a multipart form with `image`, `prompt`, optionally `mask`, and any field of the other route.

    Without a mask the whole picture is redrawn, as far as `strength` says; with one, only where it is transparent.
    """
    async with _form(request) as form:
        params = await edit_of(form, state["settings"].max_json_parts)
    return await _draw(params, request, state, caller, idempotency_key, kind="image_edit")


@router.post(
    "/images/variations",
    summary="Vary a picture (OpenAI's format)",
    responses=_ANSWER,
    openapi_extra=VARIATION_FORM,
)
async def variations(
    request: Request, state: StateDep, caller: Submitter, idempotency_key: IdempotencyKey = None
) -> Response:
    """Takes a multipart form with `image`, and any field of POST /v1/images/generations; a prompt is not needed.

    The picture is noised as far as `strength` says, and drawn again from there.
    """
    async with _form(request) as form:
        params = await variation_of(form, state["settings"].max_json_parts)
    return await _draw(params, request, state, caller, idempotency_key, kind="image_edit")


@router.get("/models", summary="List models (OpenAI's format)")
async def list_models(state: StateDep, caller: Reader) -> dict[str, Any]:
    """Every model that a live worker holds, and the aliases of these models."""
    cards = await state["store"].fleet.cards()
    aliases = [alias for alias, name in state["settings"].model_aliases.items() if name in cards and alias not in cards]
    return {"object": "list", "data": [_model(name) for name in (*cards, *aliases)]}


@router.get("/models/{name}", summary="Get a model (OpenAI's format)")
async def get_model(name: str, state: StateDep, caller: Reader) -> dict[str, Any]:
    """One model; for an alias, the model that it stands for."""
    return _model((await named_card(state, name)).name)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "cynosure"}


def _form(request: Request) -> AbstractAsyncContextManager[FormData]:
    return request.form(max_files=3, max_fields=MAX_PARTS, max_part_size=MAX_BASE64_IMAGE_LENGTH)


async def _draw(
    params: ImageFields, request: Request, state: State, caller: Caller, idempotency_key: str | None, *, kind: str
) -> Response:
    card = card_for(params, await served(state), state["settings"].model_aliases)
    with as_size(params):
        submission = await decide(state, request_of(params, card), card)
    if params.stream and params.partials:
        submission = submission.previewed(submission.request.steps // (params.partials + 1))
    job_id = (await accept(state, caller, await keyed(submission, idempotency_key, params), "openai")).id
    drawing = Drawing(
        state=state,
        caller=caller,
        job_id=job_id,
        is_keyed=idempotency_key is not None,
        params=params,
        request=submission.request,
    )
    if params.stream:
        return StreamingResponse(events_of(drawing, kind), media_type="text/event-stream")
    data = await unless_gone(request, drawing, data_of(drawing, address_of(request.scope)))
    return JSONResponse(answer_of(params, submission.request, data))
