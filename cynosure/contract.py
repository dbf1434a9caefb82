"""The contract: what a client may ask, what a model can do, and what a job says of itself.

Every limit and default lives here. `GenerateRequest` is validated once, at the gateway's door; `resolve` then fills
in the model's defaults and refuses what the model can't do, so that everything behind the door works with a
`ResolvedRequest` and never asks again.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, HttpUrl, StrictInt, StrictStr

MAX_STEPS = 1000
MAX_IMAGES = 64
MAX_PROMPT_LENGTH = 2_000
MAX_SEED = 2**63 - 1
MAX_FIRST_IMAGE = 2**31 - 1
MAX_SCALE = 100.0
MAX_BASE64_IMAGE_LENGTH = 8 * 1024 * 1024
MAX_SWEEP_CELLS = 256
MAX_PIXELS = 4096 * 4096
MAX_CONDITION_TERMS = 8
MAX_BATCH_LINES = 10_000
DELIVERY_FIELDS = frozenset({"use_cache", "preview_every", "priority", "webhook_url", "telemetry", "output_format"})
"""Fields that say how pictures are delivered, not what they show."""


class GuidanceMode(StrEnum):
    """Where the guidance comes from."""

    NONE = "none"
    CLASSIFIER = "classifier"
    CLASSIFIER_FREE = "classifier_free"
    COMBINED = "combined"


class ClassifierBase(StrEnum):
    """What the classifier's gradient is added to."""

    CONDITIONAL = "conditional"
    UNCONDITIONAL = "unconditional"


class GuidanceRule(StrEnum):
    """How classifier-free guidance moves on."""

    STANDARD = "standard"
    CFG_PLUS_PLUS = "cfg++"


class IntervalUnit(StrEnum):
    """What the two numbers of a guidance interval count."""

    FRACTION = "fraction"
    STEP = "step"
    SIGMA = "sigma"
    TIMESTEP = "timestep"


class Priority(StrEnum):
    """Turn in the queue: `normal` waits like `high` that came a minute later, `low` like `high` two minutes later."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class OutputFormat(StrEnum):
    """File formats of pictures. They are kept as PNG and turned into the others when they are fetched."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def media_type(self) -> str:
        return f"image/{self}"


class JobStatus(StrEnum):
    """States of a job: `queued → running → succeeded | failed | cancelled`."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


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


class ResolvedRequest(GenerateRequest):
    """A request with everything decided: posted again as it stands (but a sweep's), it gives the same picture."""

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
        None, exclude_if=lambda axes: axes is None, description="The grid, where the job is a sweep."
    )


class NetworkCalls(BaseModel):
    """Rows through each network; they are batched with those of other jobs."""

    model_config = ConfigDict(frozen=True)

    denoiser: int
    guide_model: int = 0
    classifier: int = Field(0, description="Forward and backward.")


class Plan(BaseModel):
    """What a request would take, without running it."""

    model_config = ConfigDict(frozen=True)

    request: ResolvedRequest = Field(description="With everything decided; a seed that was left out is a random one.")
    timesteps: tuple[float, ...] = Field(description="What the network is told, evaluation by evaluation.")
    sigmas: tuple[float, ...] = Field(description="Noise level sigma/alpha of its input, evaluation by evaluation.")
    guided_evaluations: int = Field(description="Evaluations inside the guidance interval.")
    rows: NetworkCalls
    flop: int | None = Field(None, description="Floating-point operations of the networks; null where not counted.")
    seconds: float | None = Field(None, description="Estimate for an idle worker, networks alone; null where unknown.")
    warnings: tuple[str, ...] = Field((), description="What is legal and probably not meant.")


class ModelDefaults(BaseModel):
    """What a model uses for fields that a request leaves out."""

    model_config = ConfigDict(frozen=True)

    guidance_mode: GuidanceMode = Field(description="Used when the request has a class label or prompt.")
    guidance_scale: float = Field(description="Classifier-free w.")
    classifier_scale: float | None = Field(None, description="Classifier s, where the model has a classifier.")
    sampler: str
    steps: int
    profile: str
    clip: bool


class ModelCard(BaseModel):
    """What a model can do. Workers publish it; the gateway decides by it alone."""

    model_config = ConfigDict(frozen=True)

    name: str
    title: str
    family: str = Field(description="Kind of denoiser, such as `unet2d`.")
    labels: tuple[str, ...] = Field(description="Class names; the position is the class index.")
    guidance_modes: tuple[GuidanceMode, ...]
    classifier_takes_prompt: bool = Field(
        False, description="Whether the classifier is asked by the prompt (CLIP guidance), not by a label."
    )
    classifier_bases: tuple[ClassifierBase, ...] = Field((), description="First one is the default.")
    samplers: tuple[str, ...]
    eta_samplers: tuple[str, ...] = Field((), description="Samplers that take `eta`.")
    cfg_plus_plus_samplers: tuple[str, ...] = Field((), description="Samplers that take guidance_rule `cfg++`.")
    profiles: tuple[str, ...]
    width: int
    height: int
    max_steps: int = Field(description="Largest number of steps: the training timesteps.")
    sampler_max_steps: dict[str, int] = Field({}, description="Samplers that can't take as many, with their limit.")
    max_images: int = MAX_IMAGES
    takes_prompt: bool = False
    takes_init_image: bool = Field(True, description="Whether pictures can start from a picture.")
    needs_init_image: bool = Field(False, description="Whether they must: the model enlarges pictures.")
    spacings: dict[str, tuple[str, ...]] = Field({}, description="Timestep spacings, by sampler.")
    sigma_schedules: dict[str, tuple[str, ...]] = Field({}, description="Sigma schedules, by sampler.")
    clipping_profiles: tuple[str, ...] = Field((), description="Profiles that clip where a request doesn't say.")
    must_clip: bool = Field(False, description="Whether classifier guidance without clipping would wreck the picture.")
    defaults: ModelDefaults
    digest: str = Field(description="SHA-256 over the pack's weights and configuration.")
    precision: str = Field("float32", description="Number format that the denoiser runs in here.")
    reproducible: bool = Field(True, description="Whether a picture's bytes are the same whatever shares the batch.")
    measured: bool = Field(
        True, description="Whether the workers have measured batch sizes; until then pictures take longer."
    )
    num_parameters: int
    license: str | None = None

    @property
    def drawn_by(self) -> str:
        """What the bytes of its pictures depend on, beside the request: weights and number format."""
        return f"{self.digest} {self.precision}"


class ImageInfo(BaseModel):
    """One finished picture of a job."""

    model_config = ConfigDict(frozen=True)

    index: int
    url: str
    seed: int = Field(
        description="Its noise is that of (seed, first_image + index); of a sweep's picture, of (seed, first_image)."
    )
    sha256: str


class JobError(BaseModel):
    """Why a job failed."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str


class JobLinks(BaseModel):
    """Where the job's parts are."""

    model_config = ConfigDict(frozen=True)

    self: str
    images: tuple[str, ...] = ()
    sheet: str | None = Field(None, description="All pictures of a sweep on one sheet.")


class JobAttempt(BaseModel):
    """One time that a worker took the job."""

    model_config = ConfigDict(frozen=True)

    number: int
    started_at: datetime
    ended_at: datetime | None = None
    outcome: str = Field(
        description="running, succeeded, failed or cancelled; handed_back by a worker that stopped, lost with its "
        "worker, or faulted: tried again, if attempts are left."
    )
    error: JobError | None = Field(None, description="Why, where it did not end in good order.")


class Job(BaseModel):
    """A job as the API shows it."""

    model_config = ConfigDict(frozen=True)

    id: str
    status: JobStatus
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    queue_position: int | None = Field(None, description="Jobs that start before this one; null once it has started.")
    eta_seconds: float | None = Field(
        None, description="Until the job should be done, at the pace of the last minutes; null where that is not known."
    )
    not_before: datetime | None = Field(None, description="After a fault that may pass, when it is tried again.")
    progress: float = Field(ge=0, le=1)
    step: int = Field(description="Network evaluations done, over all pictures of the job.")
    steps: int = Field(description="Network evaluations to do, over all pictures of the job.")
    attempt: int = Field(description="How often a worker has taken the job.")
    attempts: tuple[JobAttempt, ...] = Field((), description="Those times, as far as they are kept: the last ones.")
    request: ResolvedRequest
    images: tuple[ImageInfo, ...] = ()
    error: JobError | None = None
    cached: bool = Field(False, description="Answered from an earlier identical job; nothing was drawn.")
    reproducible: bool | None = Field(
        None, description="Whether the same request gives the same bytes; known when done."
    )
    telemetry: tuple[tuple[dict[str, float], ...], ...] | None = Field(
        None,
        description="By picture and evaluation: timestep, clipped (share of the prediction out of range), "
        "conditional_minus_unconditional and gradient_norm (Euclidean), probability (exp of what the classifier steers "
        "by) or similarity (of prompt and picture).",
    )
    links: JobLinks


class JobList(BaseModel):
    """GET /jobs: a page of one's own jobs, newest first."""

    model_config = ConfigDict(frozen=True)

    jobs: tuple[Job, ...] = Field(description="Without the pictures that their requests held and without telemetry.")
    next_cursor: str | None = Field(None, description="`cursor` of the next page; null after the last.")


class VaryRequest(BaseModel):
    """POST /jobs/{id}/vary: what is to be other than in the job."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [{"num_images": 4}]})

    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = Field(
        None, description="Pictures to draw; as many as the job by default. Not for sweeps."
    )


class Progress(BaseModel):
    """How far a job is, on its event stream."""

    model_config = ConfigDict(frozen=True)

    step: int = Field(description="Network evaluations done, over all pictures of the job.")
    steps: int = Field(description="Network evaluations to do.")
    telemetry: tuple[dict[str, float], ...] = Field(
        (), description="Of each evaluation since the last event: image, evaluation, and the fields of the job's own."
    )


class Preview(BaseModel):
    """What a picture looks like so far, on the event stream: the guided prediction of the finished one."""

    model_config = ConfigDict(frozen=True)

    image: int = Field(description="Index of the picture.")
    step: int = Field(description="Evaluations of it that are done.")
    png: str = Field(description="Base64 PNG, at most 256 pixels wide and high.")


class ModelList(BaseModel):
    """GET /models."""

    models: tuple[ModelCard, ...]


class Problem(BaseModel):
    """An error answer (RFC 9457)."""

    type: str = Field(description="URI reference of the kind of problem.")
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable machine-readable name.")
    field: str | None = Field(None, description="The request field at fault.")
    errors: list[dict[str, Any]] | None = Field(None, description="All faults, where there are several.")
    line: int | None = Field(None, description="The line of a batch at fault, from 1.")
    job_code: str | None = Field(None, description="The job's own error code, where a waited-for job failed.")
