"""What changes pictures besides their label or prompt.

Conditions of the classifier, LoRAs, ControlNets, image prompts and step caches.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, StrictStr, model_validator

from cynosure.contract.names import Spelled
from cynosure.contract.numbers import Fraction, Integer, Label, Real, Scale
from cynosure.contract.terms import MAX_BASE64_IMAGE_LENGTH

MAX_LORAS = 4
MAX_LORA_SCALE = 10.0
MAX_CONTROLS = 3
MAX_CONTROL_SCALE = 10.0
MAX_IMAGE_PROMPTS = 4
MAX_IMAGE_PROMPT_SCALE = 10.0
MAX_CACHE_EVERY = 10

Base64Image = Annotated[str, Field(max_length=MAX_BASE64_IMAGE_LENGTH)]


def _is_path(name: str) -> bool:
    return "/" in name or "\\" in name or name in (".", "..")


def _is_name(name: str) -> str:
    if _is_path(name):
        raise ValueError("it is a path; give the name of a LoRA, as GET /loras lists it")
    return name


def _is_name_of_control(name: str) -> str:
    if _is_path(name):
        raise ValueError("it is a path; give the name of a ControlNet, as the model's card lists it")
    return name


LoraName = Annotated[StrictStr, Field(min_length=1, max_length=200), AfterValidator(_is_name)]
ControlName = Annotated[StrictStr, Field(min_length=1, max_length=200), AfterValidator(_is_name_of_control)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ClassifierCondition(Spelled):
    """A condition for the classifier, if one label is not enough; at most 8 terms, which are summed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: dict[Annotated[str, Field(max_length=200)], Scale] = Field(
        {}, description="Weights of labels, by name or index: the sum of weight times log p(label)."
    )
    any_of: tuple[Label, ...] = Field((), description="Any one of these: log of the sum of their probabilities.")
    none_of: tuple[Label, ...] = Field(
        (),
        validation_alias=AliasChoices("not", "none_of"),
        description="None of these: log of the sum of all others' probabilities.",
    )


class Lora(BaseModel):
    """A LoRA that changes the model for the pictures of one request."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [{"name": "ink"}]})

    name: LoraName = Field(description="Name from GET /loras.")
    scale: Annotated[float, Field(ge=-MAX_LORA_SCALE, le=MAX_LORA_SCALE, allow_inf_nan=False)] = Field(
        1.0, description="Factor on what it changes; 0 is without it, negative values push away from it."
    )
    digest: Digest | None = Field(
        None,
        exclude_if=lambda digest: digest is None,
        description="SHA-256 of its file, for requests that must not be drawn with another. Jobs and pictures hold it.",
    )


class LoraOnCard(BaseModel):
    """A LoRA in the workers' folder, as one model sees it."""

    model_config = ConfigDict(frozen=True)

    name: str
    digest: str = Field("", description="SHA-256 of its file; empty if it can't be read.")
    family: str | None = Field(None, description="Family of the models that it is for; null if that isn't known.")
    rank: int = Field(0, description="The greatest of its products.")
    trigger_words: tuple[str, ...] = Field((), description="Words that it was trained with, by the file's metadata.")
    fault: str | None = Field(None, description="Why the model can't use it; null if it can.")


class LoraInfo(LoraOnCard):
    """A LoRA in the workers' folder."""

    models: tuple[str, ...] = Field(description="The served models that can use it.")


class LoraList(BaseModel):
    """GET /loras."""

    loras: tuple[LoraInfo, ...]


class Preprocessor(StrEnum):
    """What is made of a control's picture before the ControlNet sees it."""

    CANNY = "canny"
    TILE = "tile"
    GRAY = "gray"
    INVERT = "invert"


class Control(BaseModel):
    """A picture that a ControlNet steers by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ControlName = Field(description="Name of a ControlNet on the model's card.")
    image: Base64Image | None = Field(
        None,
        exclude_if=lambda image: image is None,
        description="The picture: base64 PNG, JPEG or WebP. It is fitted to the size that is drawn.",
    )
    scale: Annotated[float, Field(ge=0, le=MAX_CONTROL_SCALE, allow_inf_nan=False), Real] = Field(
        1.0, description="Factor on what the ControlNet adds; 0 is without it."
    )
    start: Fraction = Field(0.0, description="Steer only from this part of the trajectory on: 0 is pure noise.")
    end: Fraction = Field(1.0, description="Steer only up to this part: 1 is the finished picture.")
    preprocess: Preprocessor | None = Field(
        None,
        description="What to make of the picture first: `canny` (edges), `tile` (without details), `gray`, `invert`. "
        "Default: nothing.",
    )
    digest: Digest | None = Field(
        None,
        exclude_if=lambda digest: digest is None,
        description="SHA-256 of its files, for requests that must not be drawn with others. Jobs and pictures hold it.",
    )

    @model_validator(mode="after")
    def _is_ordered(self) -> Control:
        if self.start >= self.end:
            raise ValueError(f"its start, {self.start:g}, must be less than its end, {self.end:g}")
        return self

    def steers(self, evaluations: int) -> bool:
        """Whether one of so many evaluations lies between start and end as a whole."""
        return any(
            each / evaluations >= self.start and (each + 1) / evaluations <= self.end for each in range(evaluations)
        )


class ControlOnCard(BaseModel):
    """A ControlNet in the workers' folder, as one model sees it."""

    model_config = ConfigDict(frozen=True)

    name: str
    digest: str = Field("", description="SHA-256 of its files; empty if they can't be read.")
    family: str | None = Field(None, description="Family of the models that it is for; null if that isn't known.")
    fault: str | None = Field(None, description="Why the model can't use it; null if it can.")


class ImagePrompt(BaseModel):
    """A picture that is a part of the prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: Base64Image | None = Field(
        None,
        exclude_if=lambda image: image is None,
        description="The picture: base64 PNG, JPEG or WebP. Mostly the square in its middle is seen.",
    )
    scale: Annotated[float, Field(ge=0, le=MAX_IMAGE_PROMPT_SCALE, allow_inf_nan=False), Real] = Field(
        1.0, description="Factor on what is found in the picture; 0 is without it."
    )


class IpAdapterOnCard(BaseModel):
    """A model's IP-Adapter."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["plain", "plus", "full-face"] = Field(description="What it sees of a picture: as published.")
    digest: str = Field(description="SHA-256 of its file.")


class StepCache(BaseModel):
    """When the denoiser's deep blocks run: at the evaluations between, what they found last is reused."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [{"every": 3, "until": 0.8}]})

    every: Annotated[int, Field(ge=2, le=MAX_CACHE_EVERY), Integer] = Field(
        description="They run at the first evaluation and at every such one after it: 3 is the 1st, 4th, 7th and so on."
    )
    until: Fraction = Field(
        1.0, description="After this part of the evaluations they always run: 0 is pure noise, 1 the finished picture."
    )
