"""What to draw, as plain values: no tensor, no device, no request format.

A `SampleSpec` is one picture. `Guidance` says how it is steered, in terms that any sampler can apply, so pictures of
different modes, samplers and lengths share one batch.
"""

from __future__ import annotations

from dataclasses import dataclass


class InvalidSpec(ValueError):
    """A spec that can't be drawn; the message names the field and what would be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """How one picture is steered.

    Attributes:
        free_scale: classifier-free scale w of D_u + w·(D_c − D_u) (Ho & Salimans 2022, in Stable Diffusion's
            convention: 0 is unconditional, 1 conditional). `None` is one conditional row, the same as 1.
        classifier_scale: s of the term (σ²/α)·s·∇ₓ log p(y | xₜ, t) (Dhariwal & Nichol 2021). 0 is off.
        conditional: whether the label reaches the denoiser at all; the classifier always sees it.
        interval: share of the trajectory that is guided, 0 at pure noise, 1 at the finished picture. Outside it
            one row runs: conditional where `conditional`, else unconditional.
        rescale: φ in 0..1, pulls the guided prediction's standard deviation back to the conditional one's
            (Lin et al. 2023, equations 15-16, applied to D).
    """

    free_scale: float | None = None
    classifier_scale: float = 0.0
    conditional: bool = True
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0

    def is_active(self, position: int, num_positions: int) -> bool:
        """Whether evaluation `position` of `num_positions` lies in the interval."""
        return self.first_active(num_positions) <= position < round(self.interval[1] * num_positions)

    def first_active(self, num_positions: int) -> int:
        """The first evaluation in the interval; those before it don't depend on the scales."""
        return round(self.interval[0] * num_positions)

    def rows(self, *, active: bool) -> tuple[bool, ...]:
        """The denoiser rows of one evaluation: `True` for a conditional one, `False` for an unconditional one."""
        if not self.conditional:
            return (False,)
        if not active or self.free_scale is None or self.free_scale == 1.0:
            return (True,)
        if self.free_scale == 0.0:
            return (False,)
        return (True, False)

    def wants_classifier(self, *, active: bool) -> bool:
        return active and self.classifier_scale != 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSpec:
    """One picture to draw.

    Attributes:
        pack: name of a loaded pack.
        label: class index in 0..num_classes-1, or `None` for an unconditional picture.
        sampler: a name of `models.samplers.SAMPLERS`.
        steps: sampling steps, 1..num_train_timesteps.
        eta: DDIM's share of fresh noise, 0..1.
        seed, image_index: together they determine all noise of the picture.
        clip: clip D to [-1, 1] at every step.
        dynamic_threshold: quantile in 0..1 (Saharia et al. 2022), or `None`.
        priority: higher is admitted first.
        group: pictures of one group take turns with those of others.
        preview_every: call the preview callback every so many evaluations; 0 for never.
    """

    pack: str
    label: int | None = None
    guidance: Guidance = Guidance()
    sampler: str = "ddim"
    steps: int = 50
    eta: float = 0.0
    seed: int = 0
    image_index: int = 0
    clip: bool = True
    dynamic_threshold: float | None = None
    priority: int = 0
    group: str = ""
    preview_every: int = 0

    def __post_init__(self) -> None:
        if self.label is None and (self.guidance.free_scale is not None or self.guidance.classifier_scale):
            raise InvalidSpec("guidance needs a label to guide to")
        if self.steps < 1:
            raise InvalidSpec(f"steps is {self.steps}; at least 1 is needed")
