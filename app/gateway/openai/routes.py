"""POST /v1/images/generations and /v1/images/edits, GET /v1/models: what OpenAI's own clients ask for."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from app.gateway.door.auth import Reader, Submitter
from app.gateway.openai.forms import EDIT_FORM, MAX_PARTS, edit_of
from app.gateway.openai.shapes import ImageParams, answer_of, model_of, request_of
from app.gateway.openai.work import Drawing, data_of, events_of, unless_gone
from app.gateway.state import State, StateDep
from app.gateway.submission import IdempotencyKey, accept, card_of, decide, keyed
from cynosure.contract import MAX_BASE64_IMAGE_LENGTH
from jobs.accounts.api_keys import Caller

router = APIRouter(prefix="/v1", tags=["openai"])
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"description": "Pictures", "content": {"application/json": {}, "text/event-stream": {}}}
}


@router.post("/images/generations", summary="Draw pictures, as OpenAI's clients ask for them", responses=_ANSWER)
async def generations(
    asked: ImageParams, request: Request, state: StateDep, caller: Submitter, idempotency_key: IdempotencyKey = None
) -> Response:
    """Pictures as base64 or addresses, or with `stream` as events.

    Every field of POST /generate may stand beside OpenAI's own (`extra_body` of their client).
    On a class model the prompt is the name of a label. A client who drops the connection cancels its job.
    """
    return await _draw(asked, request, state, caller, idempotency_key, kind="image_generation")


@router.post(
    "/images/edits",
    summary="Redraw a picture, as OpenAI's clients ask for it",
    responses=_ANSWER,
    openapi_extra=EDIT_FORM,
)
async def edits(
    request: Request, state: StateDep, caller: Submitter, idempotency_key: IdempotencyKey = None
) -> Response:
    """A multipart form with `image`, perhaps `mask`, `prompt`, and any field of the other route.

    Without a mask the picture is redrawn by `strength`; with one, where the mask is transparent.
    """
    async with request.form(max_files=3, max_fields=MAX_PARTS, max_part_size=MAX_BASE64_IMAGE_LENGTH) as form:
        asked = await edit_of(form, state["settings"].max_json_parts)
    return await _draw(asked, request, state, caller, idempotency_key, kind="image_edit")


@router.get("/models", summary="Models, as OpenAI's clients list them")
async def list_models(state: StateDep, caller: Reader) -> dict[str, Any]:
    """Every model that a live worker holds."""
    return {"object": "list", "data": [_model(name) for name in await state["store"].fleet.cards()]}


@router.get("/models/{name}", summary="A model, as OpenAI's clients ask for it")
async def get_model(name: str, state: StateDep, caller: Reader) -> dict[str, Any]:
    """One model."""
    return _model((await state["store"].fleet.card(name)).name)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "cynosure"}


async def _draw(
    asked: ImageParams, request: Request, state: State, caller: Caller, idempotency_key: str | None, *, kind: str
) -> Response:
    card = await card_of(state, model_of(asked), prompted=True)
    submission = await decide(state, request_of(asked, card), card)
    if asked.stream and asked.partials:
        submission = submission.previewed(submission.request.steps // (asked.partials + 1))
    job_id = await accept(state, caller, await keyed(submission, idempotency_key, asked))
    drawing = Drawing(state, caller, asked, submission.request, job_id)
    if asked.stream:
        return StreamingResponse(events_of(drawing, kind), media_type="text/event-stream")
    data = await unless_gone(request, drawing, data_of(drawing, str(request.base_url)))
    return JSONResponse(answer_of(asked, submission.request, data))
