"""The bodies of A1111's requests, and their conversion to ours."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

from PIL import ImageOps
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.gateway.a1111.samplers import sampling_of
from cynosure.contract import (
    MAX_IMAGES,
    MAX_PROMPT_LENGTH,
    MAX_SEED,
    MAX_STEPS,
    Base64Image,
    Fraction,
    GenerateRequest,
    LongPrompt,
    ModelCard,
    PromptSyntax,
    Scale,
    Side,
)
from cynosure.errors import InvalidRequest, UnsupportedField
from cynosure.hints import shown
from cynosure.metadata import encoded_picture
from cynosure.pictures import on_black, opened
from cynosure.refusals import parsed
from cynosure.resolving import label_in_prompt, marked

MAX_IGNORED = 100
PREVIEW_EVERY = 10
"""Steps between previews: A1111's own default of `show_progress_every_n_steps`."""
_FIELDS: Mapping[str, str] = {
    "sampler": "sampler_name",
    "sigma_schedule": "scheduler",
    "timestep_spacing": "scheduler",
    "guidance_scale": "cfg_scale",
    "num_images": "n_iter",
    "class_label": "prompt",
    "init_image": "init_images",
    "mask_image": "mask",
    "strength": "denoising_strength",
    "model": "override_settings.sd_model_checkpoint",
    "clip_skip": "override_settings.CLIP_stop_at_last_layers",
}
"""What A1111 calls a field of ours that a refusal may name."""
_WITHOUT_EFFECT: tuple[Any, ...] = ("", 0, -1, [], {})  # and False; null is left out before
_HASH = re.compile(r"\s*\[[0-9a-f]+\]$")
_SUFFIX = re.compile(r"\.(safetensors|ckpt)$")

Prompt = Annotated[str, Field(max_length=MAX_PROMPT_LENGTH)]
Count = Annotated[int, Field(ge=1, le=MAX_IMAGES)]


class Lenient(BaseModel):
    """A body of A1111's API: fields that are not known have no effect, and `null` is a field that was left out."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {name: one for name, one in value.items() if one is not None} if isinstance(value, dict) else value

    def ignored(self) -> list[str]:
        """The names of fields that are not known and not empty; the first `MAX_IGNORED`, shortened."""
        names = [name for name, value in (self.model_extra or {}).items() if value not in _WITHOUT_EFFECT]
        return [shown(name) for name in names[:MAX_IGNORED]]

    def known(self) -> dict[str, Any]:
        """The fields that were sent and are known, as JSON values."""
        names = [name for name in type(self).model_fields if name in self.model_fields_set]
        values = {name: getattr(self, name) for name in names}
        return {name: value.known() if isinstance(value, Lenient) else value for name, value in values.items()}


class Options(Lenient):
    """Settings of A1111 that have an effect here."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"sd_model_checkpoint": "fashion"}]})

    sd_model_checkpoint: Annotated[str, Field(max_length=300)] | None = Field(
        None, description="The model: a name or title of GET /sdapi/v1/sd-models, or an alias."
    )


class Overrides(Options):
    """Settings of A1111 that a request may override."""

    CLIP_stop_at_last_layers: Annotated[int, Field(ge=1, le=100)] | None = Field(
        None, description="`clip_skip`, for models that take it."
    )
    show_progress_every_n_steps: Annotated[int, Field(ge=-1, le=MAX_STEPS)] | None = Field(
        None, description=f"Steps between the previews of GET /sdapi/v1/progress; 0 for none. Default: {PREVIEW_EVERY}."
    )


class TextToImage(Lenient):
    """The body of POST /sdapi/v1/txt2img."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompt": "sneaker", "steps": 20, "sampler_name": "Euler a", "cfg_scale": 3, "batch_size": 2}]
        }
    )

    prompt: Prompt = Field("", description="What to draw; for a class model, the name of one of its labels.")
    negative_prompt: Prompt = Field("", description="What to steer away from.")
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED - MAX_IMAGES)] = Field(
        -1, description="Picture i has this seed plus i; -1 for a random one."
    )
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = Field(None, description="Default: the model's.")
    cfg_scale: Scale | None = Field(None, description="Guidance scale. Default: the model's.")
    width: Side | None = Field(None, description="In pixels. Default: the model's.")
    height: Side | None = Field(None, description="In pixels. Default: the model's.")
    sampler_name: Annotated[str, Field(max_length=100)] | None = Field(
        None, description="A name of GET /sdapi/v1/samplers, or A1111's older ones such as `DPM++ 2M Karras`."
    )
    sampler_index: Annotated[str, Field(max_length=100)] | None = Field(None, description="Old name of sampler_name.")
    scheduler: Annotated[str, Field(max_length=100)] | None = Field(
        None, description="A name of GET /sdapi/v1/schedulers."
    )
    eta: Fraction | None = Field(None, description="For samplers that take it; others ignore it.")
    batch_size: Count = Field(1, description="Pictures: batch_size times n_iter are drawn.")
    n_iter: Count = Field(1, description="See batch_size.")
    override_settings: Overrides = Overrides()
    send_images: bool = Field(True, description="Whether the answer has the pictures.")
    enable_hr: bool = Field(False, description="There is no second pass here: true is refused.")
    script_name: Annotated[str, Field(max_length=200)] | None = Field(None, description="There are no scripts.")
    alwayson_scripts: dict[str, Any] = Field({}, description="There are no scripts.")

    @property
    def count(self) -> int:
        return self.batch_size * self.n_iter

    def ignored(self) -> list[str]:
        of_settings = [f"override_settings.{name}" for name in self.override_settings.ignored()]
        return [*super().ignored(), *of_settings]

    def pictures(self) -> dict[str, Any]:
        """The fields of ours that depend on pictures in the body. Slow."""
        return {}


_GREY = "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAAAAABXZoBIAAAAFklEQVR42mNsYMANmBhGJUclRyWhAADxiwC4gQrlWAAAAABJRU5ErkJggg=="
"""A grey PNG of 28 by 28 pixels, as base64."""


class ImageToImage(TextToImage):
    """The body of POST /sdapi/v1/img2img."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"init_images": [_GREY], "prompt": "sneaker", "denoising_strength": 0.8}]}
    )

    init_images: Annotated[tuple[Base64Image, ...], Field(min_length=1, max_length=1)] = Field(
        description="The picture to start from, as base64; one."
    )
    mask: Base64Image | None = Field(None, description="White where the picture is redrawn, as base64.")
    denoising_strength: Fraction = Field(0.75, description="How far to depart from the picture.")
    inpainting_mask_invert: Annotated[int, Field(ge=0, le=1)] = Field(0, description="1: black is redrawn instead.")
    include_init_images: bool = Field(False, description="Whether the answer's `parameters` repeat the pictures.")

    def known(self) -> dict[str, Any]:
        left_out = () if self.include_init_images else ("init_images", "mask")
        return {name: value for name, value in super().known().items() if name not in left_out}

    def pictures(self) -> dict[str, Any]:
        mask = self.mask
        if mask is not None and self.inpainting_mask_invert:
            inverted = io.BytesIO()
            ImageOps.invert(on_black(opened(mask, "mask"), "mask")).save(inverted, "PNG")
            mask = encoded_picture(inverted.getvalue())
        return {"init_image": self.init_images[0], "mask_image": mask, "strength": self.denoising_strength}


@contextmanager
def as_theirs() -> Iterator[None]:
    """Let a refusal name the field that A1111 has."""
    try:
        yield
    except InvalidRequest as error:
        ours = error.field or ""
        error.field = _FIELDS.get(ours, error.field)
        if "_" in ours:  # other names are words too
            error.detail = re.sub(rf"\b{ours}\b", _FIELDS.get(ours, ours), error.detail)
        raise


def model_name(checkpoint: str, cards: Mapping[str, ModelCard]) -> str:
    """The name of a model, or an alias, that may be written as a title (`name [hash]`), a file's name or a hash."""
    if checkpoint in cards:
        return checkpoint
    name = _SUFFIX.sub("", _HASH.sub("", checkpoint.strip()))
    by_hash = {digest: one for one, card in cards.items() for digest in (card.digest, card.digest[:10])}
    return by_hash.get(name, name)


def title_of(card: ModelCard) -> str:
    """A model's title in A1111's style."""
    return f"{card.name} [{card.digest[:10]}]"


def request_of(params: TextToImage, card: ModelCard) -> tuple[GenerateRequest, list[str]]:
    """Convert the request to Cynosure's own, for one picture, and name the fields that have no effect. Slow.

    Raises:
        UnknownLabel: the prompt is not one of a class model's labels.
        InvalidRequest: names a field, of ours or of theirs.
    """
    _refuse_scripts(params)
    ignored = params.ignored()
    settings, is_empty = params.override_settings, not params.prompt.strip()
    every = settings.show_progress_every_n_steps
    fields: dict[str, Any] = {
        "model": card.name,
        "seed": None if params.seed == -1 else params.seed,
        "steps": params.steps,
        "preview_every": PREVIEW_EVERY if every is None else max(0, every),
        **sampling_of(params.sampler_name or params.sampler_index or None, params.scheduler, card),
        **params.pictures(),
    }
    sides = {"width": params.width, "height": params.height}
    if card.sizes.is_one:  # clients send 512 by 512 unless they are told otherwise
        own = zip(sides.items(), card.sizes.default, strict=True)
        ignored += [name for (name, side), only in own if side not in (None, only)]
    else:
        fields |= sides
    if card.takes_prompt:
        prompt, loras = marked(params.prompt)
        fields |= {"prompt": prompt, "negative_prompt": params.negative_prompt or None, **_reading(card)}
        fields["loras"] = [lora.model_dump() for lora in loras]
    elif not is_empty:
        fields["class_label"] = label_in_prompt(params.prompt, card)
    if params.cfg_scale is not None and (card.takes_prompt or not is_empty):
        fields["guidance_scale"] = params.cfg_scale
    elif params.cfg_scale is not None:
        ignored.append("cfg_scale")
    if params.negative_prompt.strip() and not card.takes_prompt:
        ignored.append("negative_prompt")
    if (settings.CLIP_stop_at_last_layers or 1) > 1 or card.max_clip_skip:
        fields["clip_skip"] = settings.CLIP_stop_at_last_layers
    if params.eta is not None and fields.get("sampler", card.default_sampler(None)) in card.eta_samplers:
        fields["eta"] = params.eta
    elif params.eta not in (None, 1):  # 1 is what ancestral samplers do
        ignored.append("eta")
    return parsed(GenerateRequest, fields), ignored


def _reading(card: ModelCard) -> dict[str, Any]:
    """Prompts are read as A1111 reads them, by models that can."""
    return {
        "prompt_syntax": PromptSyntax.WEIGHTED if PromptSyntax.WEIGHTED in card.prompt_syntaxes else None,
        "long_prompt": LongPrompt.CHUNK if LongPrompt.CHUNK in card.long_prompts else None,
    }


def _refuse_scripts(params: TextToImage) -> None:
    for field in ("script_name", "alwayson_scripts"):
        if getattr(params, field):
            raise UnsupportedField(field, f"There are no scripts here; leave {field} out.")
    if params.enable_hr:
        raise UnsupportedField("enable_hr", "There is no second pass here: leave enable_hr out, and give the size.")
    if params.count > MAX_IMAGES:
        raise InvalidRequest(f"batch_size times n_iter is at most {MAX_IMAGES}.", field="n_iter")
