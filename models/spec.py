"""Specifications of pictures as plain values, independent of tensors, devices and request formats.

A `SampleSpec` is one picture. `Guidance` describes how it is steered, in terms that any sampler can apply, so pictures
of different modes, samplers and lengths share one batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum, auto

import numpy as np
from numpy.typing import NDArray


class InvalidSpec(ValueError):
    """A spec that can't be drawn; the message names the field and what would be right."""


class InvalidPrompt(InvalidSpec):
    """A prompt that can't be read as its spec asks.

    Args:
        field: the field that holds it.
        fault: what is wrong with it, as a sentence without its subject.
    """

    def __init__(self, field: str, fault: str) -> None:
        super().__init__(f"{field} {fault}")
        self.field = field


class IntervalUnit(StrEnum):
    """Unit of the two numbers of a guidance interval."""

    FRACTION = "fraction"  # of the trajectory: 0 at pure noise, 1 at the finished picture
    STEP = "step"  # network evaluations, the first is 0; both ends included
    SIGMA = "sigma"  # σ/α of the network's input; both ends included
    TIMESTEP = "timestep"  # the timestep that the network gets; both ends included


class Steps(StrEnum):
    """Whose steps a table follows."""

    EXACT = "exact"  # each step ends at the noise level at which the network is evaluated next
    FOLDER = "folder"  # those of the folder's own scheduler configuration, as diffusers' pipelines run it
    CONTINUOUS = "continuous"  # evenly spaced in continuous time, as in DPM-Solver's published code


class LongPrompt(StrEnum):
    """What is done with a prompt of more tokens than a text encoder reads at once."""

    CHUNK = "chunk"  # encoded in several chunks, whose states are joined
    TRUNCATE = "truncate"  # the tokens that are too many are cut off
    REFUSE = "refuse"


class Row(Enum):
    """A denoiser row's kind of conditioning."""

    CONDITIONAL = auto()
    UNCONDITIONAL = auto()


@dataclass(frozen=True, slots=True)
class Term:
    """weight · log Σ p(y | xₜ) over `classes`: one class, any of several, or, by listing all others, "not this one"."""

    weight: float
    classes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pixels:
    """A picture to start from: `uint8`, as bytes, so that specs stay hashable."""

    data: bytes
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, picture: NDArray[np.uint8]) -> Pixels:
        """From (H,W,C)."""
        height, width, channels = picture.shape
        return cls(picture.tobytes(), (height, width, channels))

    def array(self) -> NDArray[np.uint8]:
        return np.frombuffer(self.data, np.uint8).reshape(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """How one picture is steered.

    Attributes:
        free_scale: classifier-free scale w of D_u + w·(D_c − D_u) (Ho & Salimans 2022, in Stable Diffusion's
            convention: 0 is unconditional, 1 conditional). `None` is one conditional row, the same as 1.
        classifier_scale: s of the term (σ²/α)·s·∇ₓ log p(y | xₜ, t) (Dhariwal & Nichol 2021). 0 is off.
        terms: the classifier steers to the sum of these; if empty, to the spec's label.
        conditional: whether the label or prompt reaches the denoiser at all; the classifier always sees it.
        guide_pack: a second pack that computes D_u instead: a weaker one for autoguidance (Karras et al. 2024), or an
            unconditional one.
        plus_plus: CFG++ (Chung et al. 2024): noise is estimated from the unguided prediction. First-order samplers
            only.
        interval: the part of the trajectory that is guided, in `interval_unit`. Outside it one row runs: conditional
            if `conditional`, else unconditional.
        rescale: φ in 0..1: pulls the guided prediction's standard deviation back to the conditional one's
            (Lin et al. 2023, equations 15-16, applied to D).
    """

    free_scale: float | None = None
    classifier_scale: float = 0.0
    terms: tuple[Term, ...] = ()
    conditional: bool = True
    guide_pack: str | None = None
    plus_plus: bool = False
    interval: tuple[float, float] = (0.0, 1.0)
    interval_unit: IntervalUnit = IntervalUnit.FRACTION
    rescale: float = 0.0

    def active_range(self, timesteps: NDArray[np.float64], sigmas: NDArray[np.float64]) -> range:
        """The guided evaluations of a trajectory: `timesteps` (M,), and σ/α of the network's inputs (M,)."""
        low, high = self.interval
        match self.interval_unit:
            case IntervalUnit.FRACTION:
                return range(round(low * len(sigmas)), round(high * len(sigmas)))
            case IntervalUnit.STEP:
                return range(min(int(low), len(sigmas)), min(int(high) + 1, len(sigmas)))
            case IntervalUnit.SIGMA:
                inside = np.flatnonzero((sigmas >= low) & (sigmas <= high))
            case IntervalUnit.TIMESTEP:
                inside = np.flatnonzero((timesteps >= low) & (timesteps <= high))
        return range(int(inside[0]), int(inside[-1]) + 1) if len(inside) else range(0)

    def rows(self, *, active: bool) -> tuple[Row, ...]:
        """The denoiser rows of one evaluation, a conditional one first."""
        if not self.conditional:
            return (Row.UNCONDITIONAL,)
        if not active or self.free_scale is None or (self.free_scale == 1.0 and not self.plus_plus):
            return (Row.CONDITIONAL,)
        if self.free_scale == 0.0:
            return (Row.UNCONDITIONAL,)
        return (Row.CONDITIONAL, Row.UNCONDITIONAL)

    def wants_classifier(self, *, active: bool) -> bool:
        return active and self.classifier_scale != 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeConditioning:
    """What XL is told of size and crop (Podell et al. 2023, section 2.2), (height, width) in pixels as in diffusers.

    `None` is the picture's own size. Unconditional rows are told the same, unless both negative sizes are given.
    """

    original_size: tuple[int, int] | None = None
    crops_coords_top_left: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    negative_original_size: tuple[int, int] | None = None
    negative_crops_coords_top_left: tuple[int, int] = (0, 0)
    negative_target_size: tuple[int, int] | None = None

    def times(self, size: tuple[int, int]) -> tuple[int, ...]:
        """The six numbers that a conditional row of a picture of `size` is told."""
        return (*(self.original_size or size), *self.crops_coords_top_left, *(self.target_size or size))

    def negative_times(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Those that an unconditional row is told."""
        if self.negative_original_size is None or self.negative_target_size is None:
            return self.times(size)
        return (*self.negative_original_size, *self.negative_crops_coords_top_left, *self.negative_target_size)


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA that a picture is drawn with.

    Attributes:
        name: in the engine's folder of LoRAs.
        scale: what its product is multiplied by; 0 is without it.
        digest: SHA-256 of its file; another is refused.
    """

    name: str
    scale: float = 1.0
    digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A picture that a ControlNet (Zhang et al. 2023) steers by.

    Attributes:
        model: name in the engine's folder of ControlNets.
        image: the picture, RGB of any size.
        scale: what the network's residuals are multiplied by.
        start, end: the evaluations that it steers, as fractions of all: those that lie between them as a whole.
        preprocess: a name of `models.adapters.controls.PREPROCESSORS`, or `None` for the picture as it is.
        digest: SHA-256 of the ControlNet's files; others are refused.
    """

    model: str
    image: Pixels
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    preprocess: str | None = None
    digest: str | None = None

    def steers(self, position: int, evaluations: int) -> bool:
        """Whether it steers the evaluation at `position` of so many, counted as in diffusers' pipelines."""
        return position / evaluations >= self.start and (position + 1) / evaluations <= self.end


@dataclass(frozen=True, slots=True)
class ImagePrompt:
    """A picture that is a part of the prompt, by the pack's IP-Adapter (Ye et al. 2023).

    Attributes:
        image: the picture, RGB of any size.
        scale: what the attentions find in it is multiplied by; 0 is without it.
    """

    image: Pixels
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class StepCache:
    """Deep blocks run in every `every`-th evaluation from the first on, and in all after the part `until` of them."""

    every: int
    until: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSpec:
    """One picture to draw.

    Attributes:
        pack: name of a loaded pack.
        label: class index in 0..num_classes-1, or its name in the pack; `None` for an unconditional picture.
        prompt, negative_prompt: for packs that take text; the negative one replaces "no prompt" in unconditional rows.
        height, width: in pixels; `None` is the pack's own.
        size_conditioning: what networks that take it are told of size and crop.
        long_prompt: what is done with prompts that are too long; `None` is the first of the pack's `PromptOptions`.
        weighted: whether prompts hold weights, as `models.networks.weights` describes them.
        clip_skip: the layer of CLIP that prompts are read from, counted from the one that the family uses, which is 1.
        loras: the LoRAs that change its networks; those of several add up.
        controls: the pictures that ControlNets steer it by; those of several add up.
        image_prompts: pictures that the denoiser looks at beside the prompt; those of several add up.
        sampler: a name of `models.samplers.SAMPLERS`.
        steps: sampling steps, 1..num_train_timesteps.
        eta: DDIM's share of fresh noise, 0..1.
        spacing, sigmas: how the steps are spaced, for samplers with these options; `None` is the sampler's default.
        respacing: ADM's timestep string, such as "250", "10,15,20" or "ddim25"; for ddpm and ddim, instead of `steps`.
        cache: when deep blocks run; `None` is always.
        profile: a name of `models.profiles.PROFILES`.
        seed, image_index: together they determine all of the picture's noise.
        clip: clip D to [-1, 1] at every step.
        dynamic_threshold: quantile in 0..1 (Saharia et al. 2022), or `None`.
        init_image: a picture to start from, of any size.
        strength: how far to depart from it, in 0..1.
        mask: (H,W,1), white where `init_image` is redrawn.
        priority: higher runs first.
        group: pictures of one group take turns with those of other groups.
        preview_every: number of evaluations between calls of the preview callback; 0 for none.
        telemetry: whether to record the effect of guidance in every evaluation.
    """

    pack: str
    label: int | str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    size_conditioning: SizeConditioning = SizeConditioning()
    long_prompt: LongPrompt | None = None
    weighted: bool = False
    clip_skip: int = 1
    loras: tuple[Lora, ...] = ()
    controls: tuple[Control, ...] = ()
    image_prompts: tuple[ImagePrompt, ...] = ()
    guidance: Guidance = Guidance()
    sampler: str = "ddim"
    steps: int = 50
    eta: float = 0.0
    spacing: str | None = None
    sigmas: str | None = None
    respacing: str | None = None
    cache: StepCache | None = None
    profile: str = "cynosure"
    seed: int = 0
    image_index: int = 0
    clip: bool = True
    dynamic_threshold: float | None = None
    init_image: Pixels | None = None
    strength: float = 1.0
    mask: Pixels | None = None
    priority: int = 0
    group: str = ""
    preview_every: int = 0
    telemetry: bool = False

    def __post_init__(self) -> None:
        steered = self.guidance.free_scale is not None or (self.guidance.classifier_scale and not self.guidance.terms)
        if self.label is None and self.prompt is None and steered:
            raise InvalidSpec("guidance needs a label or a prompt to guide to")
        if self.steps < 1:
            raise InvalidSpec(f"steps is {self.steps}; at least 1 is needed")
        if self.mask is not None and self.init_image is None:
            raise InvalidSpec("mask needs an init_image to keep the rest of")

    @property
    def class_index(self) -> int | None:
        """The label as an index; the engine replaces names before anything reads it."""
        if isinstance(self.label, str):
            raise InvalidSpec(f"label '{self.label}' is a name, which only `Engine` reads; give the index")
        return self.label

    def size(self, own: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the picture, where `own` is the pack's."""
        return (own[0] if self.height is None else self.height, own[1] if self.width is None else self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """What a model family lets a spec choose about the reading of prompts.

    Attributes:
        long_prompts: the first is the default; if empty, prompts that are too long are cut off.
        takes_weights: whether words can have weights.
        most_clip_skip: greatest `clip_skip`; 0 if there is no CLIP whose layers could be chosen.
    """

    long_prompts: tuple[LongPrompt, ...] = ()
    takes_weights: bool = False
    most_clip_skip: int = 0

    def check(self, spec: SampleSpec) -> None:
        """Refuse what the family can't do.

        Raises:
            InvalidSpec: names the field.
        """
        if spec.long_prompt is not None and spec.long_prompt not in self.long_prompts:
            raise InvalidSpec(f"long_prompt is '{spec.long_prompt}'; known: {', '.join(self.long_prompts) or 'none'}")
        if spec.weighted and not self.takes_weights:
            raise InvalidSpec("prompts of this model's family can't be weighted")
        if not 1 <= spec.clip_skip <= max(1, self.most_clip_skip):
            raise InvalidSpec(f"clip_skip is {spec.clip_skip}; this model takes 1 to {max(1, self.most_clip_skip)}")
