"""POST /generate."""

from __future__ import annotations

from fastapi import APIRouter, Response

from app.gateway.addresses import AddressDep
from app.gateway.answers import Prefer, answer
from app.gateway.door.auth import Submitter
from app.gateway.formats import Accept, best
from app.gateway.json_bodies import JSONRoute
from app.gateway.state import StateDep
from app.gateway.submission import IdempotencyKey, accept, decide, keyed
from cynosure.contract import GenerateRequest, Job, OutputFormat, Problem
from cynosure.errors import InvalidRequest, NotAcceptable

router = APIRouter(tags=["generate"], route_class=JSONRoute)

_JOB = "application/json"


def _picture_format(accepted_types: str | None, request: GenerateRequest) -> OutputFormat | None:
    """The format of the picture that is to be the answer; `None` if a job is.

    Raises:
        NotAcceptable: the client takes neither.
        InvalidRequest: it takes only a picture, and there will be several.
    """
    pictures = {format.media_type: format for format in (request.output_format, *OutputFormat)}
    chosen = pictures.get(best(accepted_types, [_JOB, *pictures]))
    if chosen is None or request.num_images == 1:
        return chosen
    try:
        best(accepted_types, [_JOB])
    except NotAcceptable:
        raise InvalidRequest(
            "An answer with Accept: image/… holds only one picture: set num_images to 1, or accept application/json.",
            field="num_images",
        ) from None
    return None


@router.post(
    "/generate",
    status_code=202,
    response_model=Job,
    summary="Draw pictures",
    responses={
        200: {"model": Job, "content": {format.media_type: {} for format in OutputFormat}},
        406: {"model": Problem},
    },
)
async def generate(
    request: GenerateRequest,
    state: StateDep,
    caller: Submitter,
    address: AddressDep,
    prefer: Prefer = None,
    accepted_types: Accept = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept a job.

    With `Prefer: wait=SECONDS` the answer waits for it; with `Accept: image/png` (or `image/jpeg`, `image/webp`) the
    answer is the picture itself. If `Accept` takes both equally, the answer is the job.
    """
    as_picture = _picture_format(accepted_types, request)
    submission = await decide(state, request)
    accepted = await accept(state, caller, await keyed(submission, idempotency_key, request), "generate")
    return await answer(state, caller, address, accepted, prefer, as_picture=as_picture)
