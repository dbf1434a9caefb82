"""The shapes of OpenAI's images API, and the way from them to ours."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from cynosure.contract import (
    MAX_IMAGES,
    MAX_PROMPT_LENGTH,
    GenerateRequest,
    ModelCard,
    OutputFormat,
    ResolvedRequest,
)
from cynosure.errors import InvalidRequest, UnknownLabel
from cynosure.metadata import again

MAX_PARTIAL_IMAGES = 3
_QUALITIES = {"low": 0.5, "standard": 1.0, "medium": 1.0, "auto": 1.0, "high": 2.0, "hd": 2.0, "xhigh": 3.0, "max": 4.0}
"""Quality as a factor on the model's own number of steps."""
_USAGE = {
    "total_tokens": 0,
    "input_tokens": 0,
    "output_tokens": 0,
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
}
"""Clients expect it; nothing is counted in tokens here."""


class ImageParams(GenerateRequest):
    """The body of POST /v1/images/generations: OpenAI's fields, and beside them every field of POST /generate."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "sneaker", "n": 2, "output_format": "webp", "guidance_scale": 3}]}
    )

    prompt: Annotated[str, Field(max_length=MAX_PROMPT_LENGTH)] = Field(
        description="What to draw; on a class model the name of one of its labels."
    )
    n: int = Field(1, ge=1, le=MAX_IMAGES, description="Pictures to draw.")
    size: str | None = Field(
        None, pattern=r"^(auto|[0-9]{1,4}x[0-9]{1,4})$", description="WIDTHxHEIGHT that the model draws, or auto."
    )
    quality: Literal["low", "standard", "medium", "auto", "high", "hd", "xhigh", "max"] | None = Field(
        None, description="Steps: low is half of the model's own number, high or hd twice, xhigh 3 times, max 4 times."
    )
    response_format: Literal["b64_json", "url"] | None = Field(None, description="b64_json by default.")
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None, description="Quality of JPEG and WebP; the best by default."
    )
    stream: bool | None = Field(None, description="Server-sent events, with partial pictures where asked for.")
    partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIAL_IMAGES)] | None = Field(
        None, description="Partial pictures on the stream, at even distances."
    )
    background: Literal["auto", "opaque"] | None = Field(None, description="Pictures are opaque.")
    moderation: Literal["auto", "low"] | None = Field(None, description="Taken and not used: nothing is moderated.")
    user: Annotated[str, Field(max_length=200)] | None = Field(None, description="Taken and not used.")
    safety_identifier: Annotated[str, Field(max_length=200)] | None = Field(None, description="Taken and not used.")
    input_fidelity: Literal["low", "high"] | None = Field(None, description="Of edits; taken and not used.")

    @property
    def partials(self) -> int:
        return self.partial_images or 0


def model_of(asked: ImageParams) -> str | None:
    """The model that the request names, or else its `from_image`.

    Raises:
        InvalidRequest: the picture holds no request, or one that can't be drawn from what is given.
    """
    return again(GenerateRequest.model_validate(_ours(asked)))[0].model


def _ours(asked: ImageParams) -> dict[str, Any]:
    """What is set of the fields that POST /generate has too."""
    return asked.model_dump(include=asked.model_fields_set & set(GenerateRequest.model_fields))


def request_of(asked: ImageParams, card: ModelCard) -> GenerateRequest:
    """The request in our terms.

    Raises:
        UnknownLabel: the prompt is none of a class model's labels.
        InvalidRequest: two fields say the same thing.
    """
    for theirs, ours in (("n", "num_images"), ("size", "width"), ("size", "height")):
        if {theirs, ours} <= asked.model_fields_set:
            raise InvalidRequest(f"Give {theirs} or {ours}, not both.", field=ours)
    fields = _ours(asked)
    if "n" in asked.model_fields_set:
        fields["num_images"] = asked.n
    if asked.size not in (None, "auto"):
        fields["width"], fields["height"] = (int(side) for side in asked.size.split("x"))
    if asked.quality is not None and asked.steps is None:
        most = card.sampler_max_steps.get(asked.sampler or card.defaults.sampler, card.max_steps)
        fields["steps"] = min(most, max(1, round(_QUALITIES[asked.quality] * card.defaults.steps)))
    if not card.takes_prompt:
        if asked.class_label is not None:
            raise InvalidRequest(f"On '{card.name}' the prompt is the label; leave class_label out.", field="prompt")
        fields["class_label"] = _label_named(fields.pop("prompt"), card)
    return GenerateRequest.model_validate(fields)


def _label_named(prompt: str, card: ModelCard) -> str:
    named = prompt.strip()
    if named.casefold() not in {label.casefold() for label in card.labels}:
        error = UnknownLabel(named, card.labels)
        error.field = "prompt"
        raise error
    return named


def facts_of(asked: ImageParams, request: ResolvedRequest) -> dict[str, Any]:
    """What every answer and event repeats of the request."""
    return {
        "background": "opaque",
        "output_format": str(request.output_format),
        "quality": asked.quality or "auto",
        "size": f"{request.width}x{request.height}",
    }


def answer_of(asked: ImageParams, request: ResolvedRequest, data: list[dict[str, str]]) -> dict[str, Any]:
    """The body of a whole answer."""
    return {"created": int(time.time()), "data": data, "usage": _USAGE, **facts_of(asked, request)}


def partial_event(kind: str, b64_json: str, index: int, facts: dict[str, Any]) -> dict[str, Any]:
    """A picture so far."""
    said = facts | {"output_format": str(OutputFormat.PNG)}
    return {
        "type": f"{kind}.partial_image",
        "b64_json": b64_json,
        "partial_image_index": index,
        "created_at": int(time.time()),
        **said,
    }


def completed_event(kind: str, b64_json: str, facts: dict[str, Any]) -> dict[str, Any]:
    """A finished picture."""
    return {
        "type": f"{kind}.completed",
        "b64_json": b64_json,
        "created_at": int(time.time()),
        "usage": _USAGE,
        **facts,
    }
