"""/v1/predictions and what else Replicate's clients call."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from app.gateway.addresses import Address, AddressDep
from app.gateway.answers import Prefer, held_for, wait_for
from app.gateway.door.auth import Reader, Submitter
from app.gateway.json_bodies import JSONRoute
from app.gateway.replicate.shapes import (
    STARTING,
    Prediction,
    PredictionPage,
    PredictionRequest,
    as_theirs,
    card_for,
    model_of,
    request_of,
    version_of,
)
from app.gateway.replicate.work import prediction
from app.gateway.state import State, StateDep
from app.gateway.submission import IdempotencyKey, accept, decide, keyed, served
from app.gateway.webhooks.routes import secret_for
from cynosure.contract import ModelCard, Problem
from cynosure.errors import InvalidRequest
from jobs.accounts.api_keys import Caller

router = APIRouter(prefix="/v1", tags=["replicate"], route_class=JSONRoute)
WAIT_S = 60.0  # of a bare `Prefer: wait`
PAGE = 100
_CREATED: dict[int | str, dict[str, Any]] = {201: {"model": Prediction}}


@router.post("/predictions", status_code=201, summary="Draw pictures (Replicate's format)", responses=_CREATED)
async def create(
    sent: PredictionRequest,
    state: StateDep,
    caller: Submitter,
    address: AddressDep,
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Answers 201 with the prediction, or, with `Prefer: wait`, once it has ended.

    The `input` has every field of POST /generate, and the names that models at Replicate use. For a class model the
    prompt is the name of a label.
    """
    if sent.version is None:
        raise InvalidRequest("Name a model: 'version' must be set.", field="version")
    card = await _card(state, sent.version)
    return await _create(sent, card, state, caller, address, prefer, idempotency_key)


@router.post(
    "/models/{owner}/{name}/predictions",
    status_code=201,
    summary="Draw pictures with a model (Replicate's format)",
    responses=_CREATED,
)
async def create_with_model(
    owner: str,
    name: str,
    sent: PredictionRequest,
    state: StateDep,
    caller: Submitter,
    address: AddressDep,
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """As POST /v1/predictions, with the model in the address."""
    if sent.version is not None:
        raise InvalidRequest("The model is in the address already: leave version out.", field="version")
    card = await _card(state, f"{owner}/{name}")
    return await _create(sent, card, state, caller, address, prefer, idempotency_key)


@router.get("/predictions", summary="List your jobs (Replicate's format)")
async def list_predictions(
    state: StateDep,
    caller: Reader,
    address: AddressDep,
    cursor: Annotated[str | None, Query(max_length=100, description="From `next` of the previous page.")] = None,
) -> PredictionPage:
    """The jobs that this API key posted on any route, newest first."""
    page = await state["store"].listing.page(caller.owner, status=None, cursor=cursor, limit=PAGE)
    results = [await prediction(state, record, address) for record in page.records]
    more = f"{address.base}/v1/predictions?cursor={page.next_cursor}" if page.next_cursor else None
    return PredictionPage(next=more, results=tuple(results))


@router.get("/predictions/{job_id}", summary="Get a job (Replicate's format)")
async def get_prediction(job_id: str, state: StateDep, caller: Reader, address: AddressDep) -> Prediction:
    """A job that was posted on any route."""
    return await prediction(state, await state["store"].jobs.get(job_id, caller.sees), address)


@router.post("/predictions/{job_id}/cancel", summary="Cancel a job (Replicate's format)")
async def cancel(job_id: str, state: StateDep, caller: Submitter, address: AddressDep) -> Prediction:
    """Cancel the job; a finished one stays as it is."""
    return await prediction(state, await state["store"].jobs.cancel(job_id, caller.sees), address)


@router.get("/models/{owner}/{name}", summary="Get a model (Replicate's format)")
async def get_model(owner: str, name: str, state: StateDep, caller: Reader, address: AddressDep) -> dict[str, Any]:
    """One model; `owner` is any."""
    return model_of(await _card(state, f"{owner}/{name}"), address.base)


@router.get("/models/{owner}/{name}/versions", summary="List a model's version (Replicate's format)")
async def list_versions(owner: str, name: str, state: StateDep, caller: Reader) -> dict[str, Any]:
    """A model has one version, which is the digest of its files."""
    return {"previous": None, "next": None, "results": [version_of(await _card(state, f"{owner}/{name}"))]}


@router.get("/models/{owner}/{name}/versions/{version}", summary="Get a model's version (Replicate's format)")
async def get_version(owner: str, name: str, version: str, state: StateDep, caller: Reader) -> dict[str, Any]:
    """The version, with the schema of its input."""
    return version_of(await _card(state, f"{owner}/{name}:{version}"))


@router.get(
    "/webhooks/default/secret",
    summary="Secret that signs your webhooks (Replicate's format)",
    responses={404: {"model": Problem}},
)
async def get_webhook_secret(state: StateDep, caller: Submitter) -> dict[str, str]:
    """The secret of GET /webhooks/secret."""
    return {"key": secret_for(state, caller)}


async def _card(state: State, asked: str) -> ModelCard:
    return card_for(asked, await served(state), state["settings"].model_aliases)


async def _create(
    sent: PredictionRequest,
    card: ModelCard,
    state: State,
    caller: Caller,
    address: Address,
    prefer: str | None,
    idempotency_key: str | None,
) -> Response:
    with as_theirs(sent):
        submission = await decide(state, request_of(sent, card), card)
    submission = submission.told_as("prediction")
    job_id = (await accept(state, caller, await keyed(submission, idempotency_key, sent), "replicate")).id
    held_s = held_for(state, prefer, WAIT_S if prefer is not None and prefer.strip() == "wait" else None)
    made = await prediction(state, (await wait_for(state, caller, job_id, held_s or 0.0)).record, address)
    if held_s is not None and made.completed_at is None:
        made = made.model_copy(update={"status": STARTING})  # clients that waited take any other status for the end
    headers = {"Location": f"{address.root}/v1/predictions/{job_id}"}
    return JSONResponse(made.model_dump(mode="json"), 201, headers=headers)
