"""What a client may ask.

`GenerateRequest` is validated once, at the gateway's door; `resolve` then fills in the model's defaults and refuses
what the model can't do, so that everything behind the door works with a `ResolvedRequest` and never checks again.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, HttpUrl, StrictInt, StrictStr

from cynosure.contract.terms import (
    MAX_BASE64_IMAGE_LENGTH,
    MAX_FIRST_IMAGE,
    MAX_IMAGES,
    MAX_PROMPT_LENGTH,
    MAX_SCALE,
    MAX_SEED,
    MAX_STEPS,
    MAX_SWEEP_CELLS,
    ClassifierBase,
    GuidanceMode,
    GuidanceRule,
    IntervalUnit,
    OutputFormat,
    Priority,
)


def _ordered_interval(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError("the interval's start must not lie after its end")
    return interval


Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Scale = Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE, allow_inf_nan=False)]
Bound = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Interval = Annotated[tuple[Bound, Bound], AfterValidator(_ordered_interval)]
Label = StrictInt | Annotated[StrictStr, Field(max_length=200)]
Base64Image = Annotated[str, Field(max_length=MAX_BASE64_IMAGE_LENGTH)]


class ClassifierCondition(BaseModel):
    """What the classifier steers to, where one label is not enough; at most 8 terms, which are summed."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    labels: dict[Annotated[str, Field(max_length=200)], Scale] = Field(
        {}, description="Labels, by name or index, with weights: the sum of weight times log p(label)."
    )
    any_of: tuple[Label, ...] = Field((), description="Any one of these: log of the sum of their probabilities.")
    none_of: tuple[Label, ...] = Field(
        (), alias="not", description="None of these: log of the sum of all others' probabilities."
    )


class GenerateRequest(BaseModel):
    """What to draw and how. A field left out takes the model's default; an unknown field is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"class_label": "sneaker", "guidance_mode": "classifier_free", "guidance_scale": 3, "num_images": 4},
                {
                    "class_label": 8,
                    "guidance_mode": "classifier",
                    "scale": 5,
                    "sampler": "ddim",
                    "steps": 50,
                    "seed": 7,
                },
            ]
        },
    )

    model: str | None = Field(
        None,
        max_length=200,
        description="Name from GET /models; by default the first that takes prompts, or none without one.",
    )
    class_label: Label | None = Field(
        None,
        description="Class by index or name: what a class-conditional model draws, or what the classifier steers to.",
    )
    prompt: str | None = Field(None, max_length=MAX_PROMPT_LENGTH, description="What to draw; for text models.")
    negative_prompt: str | None = Field(None, max_length=MAX_PROMPT_LENGTH, description="What to steer away from.")
    guidance_mode: GuidanceMode | None = Field(None, description="Where guidance comes from; the model's default.")
    guidance_scale: Scale | None = Field(
        None,
        validation_alias=AliasChoices("guidance_scale", "scale"),
        description=(
            "Scale of the mode. classifier_free and combined: w as in Stable Diffusion, 0 ignores the label or prompt, "
            "1 is plain conditional (the paper's w is this one minus 1). classifier: s as in guided-diffusion's "
            "classifier_scale, 0 is no guidance. Negative values steer away."
        ),
    )
    classifier_scale: Scale | None = Field(
        None, description="The classifier's s in `combined`, where guidance_scale is the classifier-free w."
    )
    classifier_base: ClassifierBase | None = Field(
        None, description="What the classifier's gradient is added to; `conditional` where the model can."
    )
    classifier_condition: ClassifierCondition | None = Field(
        None, description="What the classifier steers to; class_label by default."
    )
    guide_model: str | None = Field(
        None,
        max_length=200,
        description="A second model that gives the unguided prediction: a weaker one (autoguidance), or one without "
        "labels. The same worker must hold it.",
    )
    guidance_rule: GuidanceRule = Field(
        GuidanceRule.STANDARD,
        description="`cfg++` takes the noise from the unguided prediction; its scales are 0 to 1.",
    )
    guidance_interval: Interval = Field(
        (0.0, 1.0), description="Guide only in this part of the trajectory: 0 is pure noise, 1 the finished picture."
    )
    guidance_interval_unit: IntervalUnit = Field(
        IntervalUnit.FRACTION,
        description="What the interval counts: a fraction of the trajectory, steps from 0, sigma/alpha, or timesteps.",
    )
    guidance_rescale: Fraction = Field(
        0.0, description="Pull the guided prediction's contrast back by this much (Lin et al. 2023, phi)."
    )
    sampler: str | None = Field(None, max_length=100, description="Name from the model's card.")
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = Field(
        None, validation_alias=AliasChoices("steps", "num_inference_steps"), description="Sampling steps."
    )
    timestep_spacing: str | None = Field(
        None, max_length=20, description="Which timesteps: leading, linspace or trailing; the sampler's by default."
    )
    sigma_schedule: str | None = Field(
        None, max_length=20, description="Where the steps lie on the noise scale: karras, exponential or beta."
    )
    timestep_respacing: str | None = Field(
        None,
        max_length=200,
        pattern=r"^(fast27|ddim[0-9]{1,4}|[0-9]{1,4}(,[0-9]{1,4})*)$",
        description="ADM's timestep string for ddpm and ddim, instead of steps: `250`, `10,15,20`, `ddim25`, `fast27`.",
    )
    eta: Fraction = Field(0.0, description="Share of fresh noise in each DDIM step: 0 is deterministic, 1 ancestral.")
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(
        None, description="Image i of a job uses (seed, i). Drawn, and returned, where it is left out."
    )
    num_images: int = Field(1, ge=1, le=MAX_IMAGES, description="Pictures to draw.")
    first_image: int = Field(
        0,
        ge=0,
        le=MAX_FIRST_IMAGE,
        description="Count pictures from here: the job's first one uses (seed, first_image).",
    )
    from_image: Base64Image | None = Field(
        None,
        description="A picture that was made here (base64 PNG, JPEG or WebP): every field left out is taken from it, "
        "so that nothing but this draws the same picture again, byte for byte.",
    )
    width: Annotated[int, Field(ge=1, le=8192)] | None = Field(None, description="Pixels; the model's by default.")
    height: Annotated[int, Field(ge=1, le=8192)] | None = Field(None, description="Pixels; the model's by default.")
    init_image: Base64Image | None = Field(None, description="Picture to start from: base64 PNG, JPEG or WebP.")
    strength: Fraction | None = Field(None, description="How far to depart from init_image: 0.8, or 1 with a mask.")
    mask_image: Base64Image | None = Field(
        None, description="White where init_image is redrawn: base64 PNG, JPEG or WebP."
    )
    profile: str | None = Field(None, max_length=100, description="Set of conventions to follow; from the card.")
    clip: bool | None = Field(None, description="Clip the predicted picture to its range at every step.")
    dynamic_threshold: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        None, description="Quantile for dynamic thresholding of the predicted picture (Saharia et al. 2022: 0.995)."
    )
    use_cache: bool = Field(True, description="An identical seeded request may be answered from earlier results.")
    preview_every: int = Field(0, ge=0, le=MAX_STEPS, description="Send a preview every so many steps; 0 for none.")
    priority: Priority = Field(Priority.NORMAL, description="Turn in the queue.")
    webhook_url: HttpUrl | None = Field(None, description="Called, signed, when the job is finished.")
    telemetry: bool = Field(False, description="Note in the job what guidance did in every step.")
    output_format: OutputFormat = Field(
        OutputFormat.PNG, description="File format that the job's addresses name; WebP loses nothing, JPEG does."
    )


class SweepRequest(BaseModel):
    """A grid of pictures: every label or prompt, with every scale, from every seed."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "request": {"guidance_mode": "classifier_free", "guidance_interval": [0.2, 1.0]},
                    "class_labels": ["sneaker", "bag"],
                    "guidance_scales": [1, 3, 6],
                    "seeds": [1, 2],
                }
            ]
        },
    )

    request: GenerateRequest = Field(GenerateRequest(), description="What all pictures share; not what is swept over.")
    class_labels: tuple[Label, ...] = Field((), max_length=MAX_SWEEP_CELLS, description="By index or name.")
    prompts: tuple[Annotated[str, Field(max_length=MAX_PROMPT_LENGTH)], ...] = Field((), max_length=MAX_SWEEP_CELLS)
    guidance_scales: tuple[Scale, ...] = Field((), max_length=MAX_SWEEP_CELLS)
    seeds: tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...] = Field((), max_length=MAX_SWEEP_CELLS)


class SweepAxes(BaseModel):
    """What a sweep goes over, resolved. Pictures are in the order of labels or prompts, then scales, then seeds."""

    model_config = ConfigDict(frozen=True)

    class_labels: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    guidance_scales: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()


class InputPicture(BaseModel):
    """A picture that a request held, which is kept beside the job."""

    model_config = ConfigDict(frozen=True)

    sha256: str = Field(description="Of the file's bytes.")
    size: int = Field(description="Bytes of the file.")


class ResolvedRequest(GenerateRequest):
    """A request with everything decided.

    Posted again as it stands it gives the same picture, unless it is a sweep's or has `inputs`.
    """

    model: str
    class_label: StrictInt | None = None
    guidance_mode: GuidanceMode
    sampler: str
    steps: int
    seed: int
    width: int
    height: int
    profile: str
    clip: bool
    num_images: int = Field(1, ge=1, le=MAX_SWEEP_CELLS)
    sweep: SweepAxes | None = Field(
        None, exclude_if=lambda axes: axes is None, description="The grid, if the job is a sweep."
    )
    inputs: dict[str, InputPicture] = Field(
        {},
        exclude_if=lambda inputs: not inputs,
        description="The pictures that the request held, by field: their digests and sizes stand for them.",
    )


class VaryRequest(BaseModel):
    """POST /jobs/{id}/vary: what is to be other than in the job."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [{"num_images": 4}]})

    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = Field(
        None, description="Pictures to draw; as many as the job by default. Not for sweeps."
    )
