"""Limits, and the enumerations that requests and answers use."""

from __future__ import annotations

from enum import StrEnum

MAX_STEPS = 1000
MAX_IMAGES = 64
MAX_PROMPT_LENGTH = 2_000
MAX_SEED = 2**63 - 1
MAX_FIRST_IMAGE = 2**31 - 1
MAX_SCALE = 100.0
MAX_BASE64_IMAGE_LENGTH = 8 * 1024 * 1024
MAX_SWEEP_CELLS = 256
MAX_PIXELS = 4096 * 4096
MAX_SIDE = 1_000_000
"""Largest number that is read as a side of a picture; what a model draws is on its card."""
MAX_CONDITION_TERMS = 8
MAX_BATCH_LINES = 10_000
INPUT_FIELDS = ("init_image", "mask_image")
INPUT_LISTS = ("controls", "image_prompts")
"""Fields that are lists whose entries each have an `image`."""
"""Fields that hold pictures to draw from."""
SIZE_CONDITIONING = (
    "original_size",
    "crops_coords_top_left",
    "target_size",
    "negative_original_size",
    "negative_crops_coords_top_left",
    "negative_target_size",
)
"""Fields that say what XL is told of size and crop, with the names that diffusers' pipelines have for them."""
DELIVERY_FIELDS = frozenset(
    {"use_cache", "preview_every", "priority", "webhook_url", "webhook_format", "telemetry", "output_format"}
)
"""Fields that affect how pictures are delivered, not what they show."""


class GuidanceMode(StrEnum):
    """Source of the guidance."""

    NONE = "none"
    CLASSIFIER = "classifier"
    CLASSIFIER_FREE = "classifier_free"
    COMBINED = "combined"


class ClassifierBase(StrEnum):
    """Prediction that the classifier's gradient is added to."""

    CONDITIONAL = "conditional"
    UNCONDITIONAL = "unconditional"


class GuidanceRule(StrEnum):
    """Update rule of classifier-free guidance."""

    STANDARD = "standard"
    CFG_PLUS_PLUS = "cfg++"


class LongPrompt(StrEnum):
    """What is done with a prompt of more tokens than the text encoder reads at once."""

    CHUNK = "chunk"
    TRUNCATE = "truncate"
    REFUSE = "refuse"


class PromptSyntax(StrEnum):
    """How the signs in a prompt are read."""

    PLAIN = "plain"
    WEIGHTED = "weighted"


class IntervalUnit(StrEnum):
    """Unit of the two numbers of a guidance interval."""

    FRACTION = "fraction"
    STEP = "step"
    SIGMA = "sigma"
    TIMESTEP = "timestep"


class Priority(StrEnum):
    """Priority in the queue: `normal` counts as `high` posted one minute later, `low` as `high` two minutes later."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class OutputFormat(StrEnum):
    """File formats of pictures. They are stored as PNG and converted when they are fetched."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def media_type(self) -> str:
        return f"image/{self}"

    @classmethod
    def _missing_(cls, value: object) -> OutputFormat | None:
        return cls.JPEG if value == "jpg" else None


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
