"""The formats of Replicate's predictions, and their conversion to and from ours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AnyUrl, BaseModel, ConfigDict, Field

from app.gateway.shaping import moment
from cynosure.contract import MAX_IMAGES, Fraction, GenerateRequest, JobStatus, ModelCard, Scale
from cynosure.contract.numbers import Integer
from cynosure.errors import InvalidRequest
from cynosure.resolving import label_in_prompt, real_name
from jobs.queue.record import JobRecord

OWNER = "cynosure"
"""The owner of every model, in names like `cynosure/fashion`; requests may name any owner."""
STARTING = "starting"
_BAR = 10
_SAME: Mapping[str, str] = {
    "num_outputs": "num_images",
    "guidance": "guidance_scale",
    "prompt_strength": "strength",
    "image": "init_image",
    "mask": "mask_image",
}
"""Fields of the input that have the meaning of ours."""
_SCHEDULERS: Mapping[str, Mapping[str, str]] = {
    "DDIM": {"sampler": "ddim"},
    "DDPM": {"sampler": "ddpm"},
    "PNDM": {"sampler": "pndm"},
    "KLMS": {"sampler": "lms"},
    "K_LMS": {"sampler": "lms"},
    "K_EULER": {"sampler": "euler"},
    "K_EULER_ANCESTRAL": {"sampler": "euler_ancestral"},
    "HeunDiscrete": {"sampler": "heun"},
    "DPMSolverMultistep": {"sampler": "dpmpp_2m"},
    "KarrasDPM": {"sampler": "dpmpp_2m", "sigma_schedule": "karras"},
    "UniPC": {"sampler": "unipc"},
}
"""Schedulers by the names that the models there use; other values are ours."""


class PredictionInput(GenerateRequest):
    """`input`: every field of POST /generate but `model`, and the names that models at Replicate use."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "sneaker", "num_inference_steps": 20}]})

    num_outputs: Annotated[int, Field(ge=1, le=MAX_IMAGES), Integer] | None = Field(None, description="`num_images`.")
    guidance: Scale | None = Field(None, description="`guidance_scale`.")
    prompt_strength: Fraction | None = Field(None, description="`strength`.")
    image: str | None = Field(None, description="`init_image`, also as a `data:` URL.")
    mask: str | None = Field(None, description="`mask_image`, also as a `data:` URL.")
    scheduler: Annotated[str, Field(max_length=100)] | None = Field(
        None, description=f"`sampler`, also as {', '.join(_SCHEDULERS)}."
    )
    disable_safety_checker: bool | None = Field(None, description="Accepted and ignored: nothing is checked.")
    apply_watermark: bool | None = Field(None, description="Accepted and ignored: no picture has a watermark.")


class WebhookEvent(StrEnum):
    """What Replicate calls a webhook for."""

    START = "start"
    OUTPUT = "output"
    LOGS = "logs"
    COMPLETED = "completed"


class PredictionRequest(BaseModel):
    """POST /v1/predictions."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"version": "fashion", "input": {"prompt": "bag"}}]},
    )

    version: Annotated[str, Field(min_length=1, max_length=300)] | None = Field(
        None, description="The model: its name, as `owner/name`, with or without `:digest`, or its digest alone."
    )
    input: PredictionInput = PredictionInput()
    webhook: AnyUrl | None = Field(None, description="Address that is called when the prediction ends.")
    webhook_completed: AnyUrl | None = Field(None, description="The older name of `webhook`.")
    webhook_events_filter: tuple[WebhookEvent, ...] | None = Field(
        None, description="Must hold `completed`, the only event that is sent: the pictures of a job come together."
    )
    stream: bool | None = Field(None, description="Accepted and ignored: a picture is no stream of text.")


class PredictionLinks(BaseModel):
    """Where a prediction is read and cancelled."""

    get: str
    cancel: str


class Prediction(BaseModel):
    """A job as Replicate shows it."""

    id: str
    model: str
    version: str
    input: dict[str, Any] = Field(description="The request, with everything decided.")
    output: tuple[str, ...] | None = Field(description="Addresses of the pictures.")
    error: str | None
    logs: str = Field(description="The warnings, and how far it is as clients parse it: `40%|████      | 20/50`.")
    status: str
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    metrics: dict[str, float]
    urls: PredictionLinks


class PredictionPage(BaseModel):
    """GET /v1/predictions."""

    previous: str | None = None
    next: str | None
    results: tuple[Prediction, ...]


_STATUS = {
    JobStatus.QUEUED: STARTING,
    JobStatus.RUNNING: "processing",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "canceled",
}


def card_for(asked: str, cards: Mapping[str, ModelCard], aliases: Mapping[str, str]) -> ModelCard:
    """The model that is meant by `owner/name:version`, or by a part of it.

    Raises:
        UnknownModel: no such model is served.
        InvalidRequest: it has another version, which is its digest.
    """
    for card in cards.values():
        if asked == card.digest:
            return card
    name, _, version = asked.partition(":")
    known = next((one for one in (asked, name) if one in aliases), name.rpartition("/")[2])
    card = cards[real_name(known, cards, aliases)]
    if version and asked not in aliases and version != card.digest:
        raise InvalidRequest(f"'{card.name}' has the version {card.digest} here, no other.", field="version")
    return card


def request_of(sent: PredictionRequest, card: ModelCard) -> GenerateRequest:
    """Convert the request to Cynosure's own.

    Raises:
        UnknownLabel, InvalidRequest: the prompt is not one of a class model's labels, two fields have the same meaning,
            or the webhook's filter leaves nothing to send.
    """
    given = {name: getattr(sent.input, name) for name in sent.input.model_fields_set}
    fields = {name: value for name, value in given.items() if name in GenerateRequest.model_fields}
    if "model" in fields:
        raise InvalidRequest("The model goes into version, or into the address.", field="input.model")
    for theirs, ours in _SAME.items():
        if given.get(theirs) is not None:
            _set(fields, theirs, {ours: given[theirs]})
    if sent.input.scheduler is not None:
        _set(fields, "scheduler", _SCHEDULERS.get(sent.input.scheduler, {"sampler": sent.input.scheduler}))
    if not card.takes_prompt and "prompt" in fields:
        _set(fields, "prompt", {"class_label": label_in_prompt(fields.pop("prompt"), card)})
    if (webhook := sent.webhook or sent.webhook_completed) is not None:
        if sent.webhook_events_filter is not None and WebhookEvent.COMPLETED not in sent.webhook_events_filter:
            raise InvalidRequest(
                "webhook_events_filter must hold completed, the only event that is sent.", field="webhook_events_filter"
            )
        _set(fields, "webhook", {"webhook_url": str(webhook)})
    return GenerateRequest.model_validate({**fields, "model": card.name})


@contextmanager
def as_theirs(sent: PredictionRequest) -> Iterator[None]:
    """Let a refusal name the field as it was sent."""
    names = {ours: f"input.{theirs}" for theirs, ours in _SAME.items() if getattr(sent.input, theirs) is not None}
    names["webhook_url"] = "webhook" if sent.webhook is not None else "webhook_completed"
    try:
        yield
    except InvalidRequest as error:
        if theirs := names.get(error.field or ""):
            error.detail = re.sub(rf"\b{error.field}\b", theirs, error.detail)
            error.field = theirs
        raise


def _set(fields: dict[str, Any], theirs: str, ours: Mapping[str, Any]) -> None:
    if twice := [name for name in ours if fields.get(name) is not None]:
        raise InvalidRequest(f"Give {theirs} or {twice[0]}, not both.", field=f"input.{theirs}")
    fields |= ours


def prediction_of(record: JobRecord, version: str, pictures: Sequence[str], base: str) -> Prediction:
    """The job as Replicate shows it.

    Args:
        record: the job.
        version: digest of its model.
        pictures: addresses of its finished pictures.
        base: what precedes the path of every link.
    """
    created, started, ended = (moment(at) for at in (record.created_ms, record.started_ms, record.finished_ms))
    metrics = {}
    if record.started_ms is not None and record.finished_ms is not None:
        metrics["predict_time"] = (record.finished_ms - record.started_ms) / 1000
        metrics["total_time"] = (record.finished_ms - record.created_ms) / 1000
    here = f"{base}/v1/predictions/{record.id}"
    return Prediction(
        id=record.id,
        model=f"{OWNER}/{record.request.model}",
        version=version,
        input=record.request.model_dump(mode="json", exclude_none=True),
        output=tuple(pictures) if pictures else None,
        error=record.error.message if record.error else None,
        logs="\n".join([*record.warnings, _bar(record)]),
        status=_STATUS[record.status],
        created_at=created or datetime.min,
        started_at=started,
        completed_at=ended,
        metrics=metrics,
        urls=PredictionLinks(get=here, cancel=f"{here}/cancel"),
    )


def _bar(record: JobRecord) -> str:
    done, total = record.evaluations_done, record.evaluations
    filled = int(_BAR * record.progress)
    return f"{int(100 * record.progress)}%|{'█' * filled}{' ' * (_BAR - filled)}| {done}/{total}"


def model_of(card: ModelCard, base: str) -> dict[str, Any]:
    """A model as Replicate shows it."""
    return {
        "url": f"{base}/models/{card.name}",
        "owner": OWNER,
        "name": card.name,
        "description": None,
        "visibility": "private",
        "github_url": None,
        "paper_url": None,
        "license_url": None,
        "run_count": 0,
        "cover_image_url": None,
        "default_example": None,
        "latest_version": version_of(card),
    }


def version_of(card: ModelCard) -> dict[str, Any]:
    """A model's only version; it has been there since ever, as far as anyone here knows."""
    return {
        "id": card.digest,
        "created_at": "1970-01-01T00:00:00Z",
        "cog_version": "0.9.0",  # the first that clients take arrays of pictures from as they are is 0.3.9
        "openapi_schema": {
            "components": {
                "schemas": {
                    "Input": PredictionInput.model_json_schema(),
                    "Output": {"type": "array", "items": {"type": "string", "format": "uri"}},
                }
            }
        },
    }
