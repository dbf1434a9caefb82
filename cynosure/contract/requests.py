"""The requests that a client may send.

`GenerateRequest` is validated once, when it reaches the gateway; `resolve` then fills in the model's defaults and
refuses what the model can't do. Everything after that works with a `ResolvedRequest` and never checks again.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    StrictInt,
    model_validator,
)

from cynosure.contract.conditions import (
    MAX_CONTROLS,
    MAX_IMAGE_PROMPTS,
    MAX_LORAS,
    Base64Image,
    ClassifierCondition,
    Control,
    ImagePrompt,
    Lora,
    StepCache,
)
from cynosure.contract.names import Spelled
from cynosure.contract.numbers import Fraction, Integer, Interval, Label, Real, Scale
from cynosure.contract.sizes import Side
from cynosure.contract.terms import (
    MAX_FIRST_IMAGE,
    MAX_IMAGES,
    MAX_PROMPT_LENGTH,
    MAX_SEED,
    MAX_STEPS,
    MAX_SWEEP_CELLS,
    ClassifierBase,
    GuidanceMode,
    GuidanceRule,
    IntervalUnit,
    LongPrompt,
    OutputFormat,
    Priority,
    PromptSyntax,
)


class GenerateRequest(Spelled):
    """A request for pictures. A field left out takes the model's default; an unknown field is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"class_label": "sneaker", "guidance_mode": "classifier_free", "guidance_scale": 3},
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

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_unset(cls, value: Any) -> Any:
        """Read `null`, and the seed -1 of other tools, as a field that was left out."""
        if not isinstance(value, dict):
            return value
        return {name: one for name, one in value.items() if one is not None and (name, one) != ("seed", -1)}

    model: str | None = Field(
        None,
        max_length=200,
        description="Name from GET /models, or an alias of it. Default: with a prompt, the first model that takes "
        "prompts; without one, the first that doesn't; with class labels, the first of these that has them.",
    )
    class_label: Label | None = Field(
        None,
        description="Class by index, name, or one of the names in a label such as `tench, Tinca tinca`: the one that a "
        "class-conditional model draws, or that the classifier steers towards.",
    )
    prompt: str | None = Field(
        None, max_length=MAX_PROMPT_LENGTH, description="What to draw, for models that take prompts."
    )
    negative_prompt: str | None = Field(None, max_length=MAX_PROMPT_LENGTH, description="What to steer away from.")
    long_prompt: LongPrompt | None = Field(
        None,
        description="What to do with a prompt of more tokens than the text encoder reads at once: `chunk` encodes it "
        "in chunks and joins them, `truncate` cuts off the rest, `refuse` refuses it. Default: the card's first.",
    )
    prompt_syntax: PromptSyntax | None = Field(
        None,
        description="`plain` (default): every sign is text. `weighted`: `(word)`, `(word:1.3)` and `[word]` weigh "
        "words as in A1111, and a backslash makes a bracket text.",
    )
    clip_skip: Annotated[int, Field(ge=1, le=100), Integer] | None = Field(
        None,
        description="Layer of CLIP that prompts are read from, counted back from the one that the model uses, which "
        "is 1, as in A1111; in diffusers it is one less.",
    )
    loras: tuple[Lora, ...] = Field(
        (), max_length=MAX_LORAS, exclude_if=lambda loras: not loras, description="LoRAs to draw with; they add up."
    )
    controls: tuple[Control, ...] = Field(
        (),
        max_length=MAX_CONTROLS,
        exclude_if=lambda controls: not controls,
        description="Pictures that ControlNets steer by; they add up.",
    )
    image_prompts: tuple[ImagePrompt, ...] = Field(
        (),
        max_length=MAX_IMAGE_PROMPTS,
        exclude_if=lambda prompts: not prompts,
        description="Pictures that are a part of the prompt, for models with an IP-Adapter; they add up. Without "
        "`prompt`, that is empty.",
    )
    guidance_mode: GuidanceMode | None = Field(
        None, description="Source of the guidance. Default: the model's with a label or prompt, otherwise none."
    )
    guidance_scale: Scale | None = Field(
        None,
        validation_alias=AliasChoices("guidance_scale", "scale"),
        description=(
            "Guidance scale. classifier_free and combined: w as in Stable Diffusion, 0 ignores the label or prompt, "
            "1 is plain conditional (the paper's w is this one minus 1). classifier: s as in guided-diffusion's "
            "classifier_scale, 0 is no guidance. Negative values steer away."
        ),
    )
    classifier_scale: Scale | None = Field(
        None, description="The classifier's s in mode `combined`; guidance_scale is then the classifier-free w."
    )
    classifier_base: ClassifierBase | None = Field(
        None, description="Prediction that the classifier's gradient is added to. Default: the first one on the card."
    )
    classifier_condition: ClassifierCondition | None = Field(
        None, description="Condition that the classifier steers towards. Default: class_label."
    )
    guide_model: str | None = Field(
        None,
        max_length=200,
        description="A second model for the unguided prediction: a weaker one (autoguidance), or one without labels. "
        "The same worker must hold it.",
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
        description="Unit of guidance_interval: fractions of the trajectory, steps from 0, sigma/alpha, or timesteps.",
    )
    guidance_rescale: Fraction = Field(
        0.0, description="How far to pull the guided prediction's contrast back (phi in Lin et al. 2023)."
    )
    sampler: str | None = Field(None, max_length=100, description="Name from the model's card.")
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS), Integer] | None = Field(
        None, validation_alias=AliasChoices("steps", "num_inference_steps"), description="Sampling steps."
    )
    timestep_spacing: str | None = Field(
        None, max_length=20, description="Which timesteps: leading, linspace or trailing. Default: the sampler's."
    )
    sigma_schedule: str | None = Field(
        None, max_length=20, description="How the steps are spread over noise levels: karras, exponential or beta."
    )
    timestep_respacing: str | None = Field(
        None,
        max_length=200,
        pattern=r"^(fast27|ddim[0-9]{1,4}|[0-9]{1,4}(,[0-9]{1,4})*)$",
        examples=["250", "10,15,20", "ddim25", "fast27"],
        description="ADM's timestep string for ddpm and ddim, instead of steps: `250`, `10,15,20`, `ddim25`, `fast27`.",
    )
    cache: StepCache | None = Field(
        None,
        exclude_if=lambda cache: cache is None,
        description="Step caching: draw faster and a little differently, for models with `takes_cache`. It has nothing "
        "to do with `use_cache`, which is about finished pictures.",
    )
    eta: Fraction = Field(0.0, description="Share of fresh noise in each DDIM step: 0 is deterministic, 1 ancestral.")
    seed: Annotated[int, Field(ge=0, le=MAX_SEED), Integer] | None = Field(
        None, description="Image i of a job uses (seed, i). If left out, a random seed is chosen and returned."
    )
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES), Integer] = Field(
        1, description="Number of pictures to draw."
    )
    first_image: Annotated[int, Field(ge=0, le=MAX_FIRST_IMAGE), Integer] = Field(
        0,
        description="Number of the job's first picture, which uses (seed, first_image).",
    )
    from_image: Base64Image | None = Field(
        None,
        description="A picture made by Cynosure (base64 PNG, JPEG or WebP). Every field left out is taken from it, so "
        "this field alone reproduces the picture, byte for byte.",
    )
    width: Side | None = Field(None, description="In pixels, within `sizes` of the model's card. Default: the model's.")
    height: Side | None = Field(None, description="In pixels, likewise.")
    original_size: tuple[Side, Side] | None = Field(
        None,
        examples=[[512, 640]],
        description="What XL is told of the picture's size before cropping, (height, width). Default: its own.",
    )
    crops_coords_top_left: tuple[Side, Side] | None = Field(
        None, examples=[[0, 64]], description="What XL is told of the crop, (top, left) in pixels. Default: (0, 0)."
    )
    target_size: tuple[Side, Side] | None = Field(
        None,
        examples=[[512, 640]],
        description="What XL is told of the picture's size after cropping, (height, width). Default: its own.",
    )
    negative_original_size: tuple[Side, Side] | None = Field(
        None,
        examples=[[512, 640]],
        description="The same for the unguided prediction; needs negative_target_size. Default: not negative.",
    )
    negative_crops_coords_top_left: tuple[Side, Side] | None = Field(
        None, examples=[[0, 64]], description="Likewise; needs both negative sizes. Default with these: (0, 0)."
    )
    negative_target_size: tuple[Side, Side] | None = Field(
        None, examples=[[512, 640]], description="Likewise; needs negative_original_size."
    )
    init_image: Base64Image | None = Field(None, description="Picture to start from: base64 PNG, JPEG or WebP.")
    strength: Fraction | None = Field(
        None, description="How far to depart from init_image. Default: 0.8, or 1 with a mask."
    )
    mask_image: Base64Image | None = Field(
        None, description="Mask, white where init_image is redrawn: base64 PNG, JPEG or WebP."
    )
    profile: str | None = Field(
        None, max_length=100, description="Set of conventions to follow, by its name on the model's card."
    )
    clip: bool | None = Field(None, description="Clip the predicted picture to its range at every step.")
    dynamic_threshold: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), Real] | None = Field(
        None, description="Quantile for dynamic thresholding of the predicted picture (Saharia et al. 2022: 0.995)."
    )
    use_cache: bool = Field(
        True, description="Allow an identical seeded request to be answered with an earlier result."
    )
    preview_every: Annotated[int, Field(ge=0, le=MAX_STEPS), Integer] = Field(
        0, description="Number of steps between previews; 0 for none."
    )
    priority: Priority = Field(Priority.NORMAL, description="Priority in the queue.")
    webhook_url: HttpUrl | None = Field(None, description="URL that gets a signed POST when the job ends.")
    telemetry: bool = Field(False, description="Record in the job what guidance did at every step.")
    output_format: OutputFormat = Field(
        OutputFormat.PNG, description="File format in the job's URLs. WebP is lossless; JPEG is not."
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

    request: GenerateRequest = Field(
        GenerateRequest(), description="Fields that all pictures share, without the swept ones."
    )
    class_labels: tuple[Label, ...] = Field((), max_length=MAX_SWEEP_CELLS, description="By index or name.")
    prompts: tuple[Annotated[str, Field(max_length=MAX_PROMPT_LENGTH)], ...] = Field((), max_length=MAX_SWEEP_CELLS)
    guidance_scales: tuple[Scale, ...] = Field((), max_length=MAX_SWEEP_CELLS)
    seeds: tuple[Annotated[int, Field(ge=0, le=MAX_SEED), Integer], ...] = Field((), max_length=MAX_SWEEP_CELLS)


class SweepAxes(BaseModel):
    """The resolved axes of a sweep. Pictures are ordered by label or prompt, then by scale, then by seed."""

    model_config = ConfigDict(frozen=True)

    class_labels: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    guidance_scales: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()


class InputPicture(BaseModel):
    """A picture sent with a request, stored alongside the job."""

    model_config = ConfigDict(frozen=True)

    sha256: str = Field(description="SHA-256 of the file.")
    size: int = Field(description="Size of the file in bytes.")


class ResolvedRequest(GenerateRequest):
    """A request with everything decided.

    Posting it again unchanged gives the same picture, unless it is a sweep or has `inputs`.
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
    webhook_format: str = Field(
        "job", exclude_if=lambda form: form == "job", description="What the webhook is sent: the job, or a prediction."
    )
    inputs: dict[str, InputPicture] = Field(
        {},
        exclude_if=lambda inputs: not inputs,
        description="Digests and sizes of the pictures sent with the request, by field.",
    )


class VaryRequest(BaseModel):
    """POST /jobs/{id}/vary: what to change from the job."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [{"num_images": 4}]})

    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES), Integer] | None = Field(
        None, description="Number of pictures to draw. Default: the job's number. Not for sweeps."
    )
