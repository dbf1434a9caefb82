"""The formats of OpenAI's images API, and their conversion to ours."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from cynosure.contract.numbers import Integer
from cynosure.errors import InvalidRequest
from cynosure.metadata import again
from cynosure.resolving import choose, choose_by_prompt, label_in_prompt, labels_in, with_real_names

MAX_PARTIAL_IMAGES = 3
_QUALITIES = {"low": 0.5, "standard": 1.0, "medium": 1.0, "auto": 1.0, "high": 2.0, "hd": 2.0, "xhigh": 3.0, "max": 4.0}
"""Quality as a factor on the model's own number of steps."""
_USAGE = {
    "total_tokens": 0,
    "input_tokens": 0,
    "output_tokens": 0,
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
}
"""Clients expect it, though Cynosure counts no tokens."""


class ImageFields(GenerateRequest):
    """OpenAI's fields, plus every field of POST /generate."""

    n: Annotated[int, Field(ge=1, le=MAX_IMAGES), Integer] = Field(1, description="Number of pictures to draw.")
    size: str | None = Field(
        None,
        pattern=r"^(auto|[0-9]{1,6}x[0-9]{1,6})$",
        examples=["1536x1024", "auto"],
        description="WIDTHxHEIGHT in pixels, within `sizes` of the model's card, or auto.",
    )
    quality: Literal["low", "standard", "medium", "auto", "high", "hd", "xhigh", "max"] | None = Field(
        None, description="Number of steps: low is half of the model's default, high or hd twice, xhigh 3, max 4 times."
    )
    response_format: Literal["b64_json", "url"] | None = Field(None, description="Default: b64_json.")
    output_compression: Annotated[int, Field(ge=0, le=100), Integer] | None = Field(
        None, description="Quality of JPEG and WebP. Default: JPEG 95, WebP lossless."
    )
    stream: bool | None = Field(None, description="Answer with server-sent events, which may include partial pictures.")
    partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIAL_IMAGES), Integer] | None = Field(
        None, description="Number of partial pictures on the stream, evenly spaced."
    )
    style: Literal["vivid", "natural"] | None = Field(None, description="Accepted and ignored.")
    background: Literal["auto", "opaque"] | None = Field(None, description="Pictures are always opaque.")
    moderation: Literal["auto", "low"] | None = Field(None, description="Accepted and ignored: nothing is moderated.")
    user: Annotated[str, Field(max_length=200)] | None = Field(None, description="Accepted and ignored.")
    safety_identifier: Annotated[str, Field(max_length=200)] | None = Field(None, description="Accepted and ignored.")
    input_fidelity: Literal["low", "high"] | None = Field(None, description="For edits; accepted and ignored.")

    @property
    def partials(self) -> int:
        return self.partial_images or 0


class ImageParams(ImageFields):
    """The body of POST /v1/images/generations and, as a form, of /v1/images/edits."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "sneaker", "n": 2, "output_format": "webp", "guidance_scale": 3}]}
    )

    prompt: Annotated[str, Field(max_length=MAX_PROMPT_LENGTH)] = Field(
        description="What to draw; for a class model, the name of one of its labels."
    )


def card_for(params: ImageFields, cards: Mapping[str, ModelCard], aliases: Mapping[str, str]) -> ModelCard:
    """The model that the request or else its `from_image` names, or that suits the prompt.

    Raises:
        UnknownModel: it names one that is not served.
        UnknownLabel: no model has the label.
        InvalidRequest: the picture holds no request, or one that needs pictures which were not sent.
    """
    request = with_real_names(again(GenerateRequest.model_validate(_ours(params)))[0], cards, aliases)
    labels = labels_in(request)
    if params.prompt is None:
        return choose(cards, model=request.model, prompted=False, labels=labels)
    return choose_by_prompt(cards, model=request.model, prompt=params.prompt, labels=labels)


@contextmanager
def as_size(params: ImageFields) -> Iterator[None]:
    """Let a refusal of width or height name `size`, if they came in it."""
    try:
        yield
    except InvalidRequest as error:
        if params.size is not None and error.field in ("width", "height"):
            error.field = "size"
        raise


def _ours(params: ImageFields) -> dict[str, Any]:
    """The fields set in the request that POST /generate has too."""
    return params.model_dump(include=params.model_fields_set & set(GenerateRequest.model_fields))


def request_of(params: ImageFields, card: ModelCard) -> GenerateRequest:
    """Convert the request to Cynosure's own.

    Raises:
        UnknownLabel: the prompt is not one of a class model's labels.
        InvalidRequest: two fields have the same meaning.
    """
    for theirs, ours in (("n", "num_images"), ("size", "width"), ("size", "height")):
        if {theirs, ours} <= params.model_fields_set:
            raise InvalidRequest(f"Give {theirs} or {ours}, not both.", field=ours)
    fields = _ours(params)
    if "n" in params.model_fields_set:
        fields["num_images"] = params.n
    if params.size not in (None, "auto"):
        fields["width"], fields["height"] = (int(side) for side in params.size.split("x"))
    if params.quality is not None and params.steps is None:
        most = card.sampler_max_steps.get(params.sampler or card.default_sampler(params.profile), card.max_steps)
        fields["steps"] = min(most, max(1, round(_QUALITIES[params.quality] * card.defaults.steps)))
    if params.prompt is not None and not card.takes_prompt:
        if params.class_label is not None:
            raise InvalidRequest(f"For '{card.name}' the prompt is the label; leave class_label out.", field="prompt")
        fields["class_label"] = label_in_prompt(fields.pop("prompt"), card)
    return GenerateRequest.model_validate(fields)


def facts_of(params: ImageFields, request: ResolvedRequest) -> dict[str, Any]:
    """The facts of the request that every answer and event repeats."""
    return {
        "background": "opaque",
        "output_format": str(request.output_format),
        "quality": params.quality or "auto",
        "size": f"{request.width}x{request.height}",
    }


def answer_of(params: ImageFields, request: ResolvedRequest, data: list[dict[str, str]]) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    return {"created": int(time.time()), "data": data, "usage": _USAGE, **facts_of(params, request)}


def partial_event(kind: str, b64_json: str, index: int, facts: dict[str, Any]) -> dict[str, Any]:
    """The event for a partial picture."""
    png_facts = facts | {"output_format": str(OutputFormat.PNG)}
    return {
        "type": f"{kind}.partial_image",
        "b64_json": b64_json,
        "partial_image_index": index,
        "created_at": int(time.time()),
        **png_facts,
    }


def completed_event(kind: str, b64_json: str, facts: dict[str, Any]) -> dict[str, Any]:
    """The event for a finished picture."""
    return {
        "type": f"{kind}.completed",
        "b64_json": b64_json,
        "created_at": int(time.time()),
        "usage": _USAGE,
        **facts,
    }
