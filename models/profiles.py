"""Profiles: the conventions of other systems, so that their pictures can be reproduced.

The conventions differ in small ways that change pictures: at which point D is clipped (on a tiny model at scale 5 this
changes a [-1, 1] picture by up to 0.57), where the classifier's term enters, which timesteps N steps use, how strength
is counted, and how floats become bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.spec import SampleSpec, Steps


class Rounding(StrEnum):
    """How a float picture in [-1, 1] becomes `uint8`."""

    NEAREST = "nearest"
    TRUNCATE_HALF = "truncate_half"  # (x+1)·127.5, truncated
    TRUNCATE = "truncate"  # (x+1)/2·255, truncated


class StrengthRule(StrEnum):
    """Meaning of `strength` in image-to-image."""

    DIFFUSERS = "diffusers"  # the last int(N·strength) steps, from the noise level of the first of them
    SD = "sd"  # the same steps, from the noise level of the step before them


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A set of conventions.

    Attributes:
        clips_before: D is limited before the classifier's term is added.
        clips_after: D is limited after everything else.
        clips: whether D is clipped if the request doesn't say.
        keeps_noise: samplers that estimate the noise from D before it is limited.
        rescales_output: guidance rescale is applied to the network's output, not to D.
        classifier_at_mean: ancestral sampling adds Σ·s·∇ₓ log p(y | xₜ, t) to the mean (ADM's `condition_mean`), and
            does not change D.
        skips_negative: `clip_skip` counts for the negative prompt too.
        rounding: how floats become bytes.
        strength: how image-to-image counts strength.
        steps: whose steps the tables follow; `CONTINUOUS` concerns the samplers of `samplers`.
        samplers: configuration of diffusers' schedulers that differs from ours, by sampler.
        respaces: ddpm and ddim use ADM's timesteps and variances, with endpoints, in float64.
    """

    clips_before: bool = False
    clips_after: bool = True
    clips: bool = False
    keeps_noise: tuple[str, ...] = ()
    rescales_output: bool = False
    classifier_at_mean: bool = False
    skips_negative: bool = True
    rounding: Rounding = Rounding.NEAREST
    strength: StrengthRule = StrengthRule.DIFFUSERS
    steps: Steps = Steps.EXACT
    samplers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    respaces: bool = False

    def sampling(self, spec: SampleSpec) -> tuple[Steps, dict[str, Any]]:
        """Whose steps a spec's table follows, and the scheduler's configuration that differs from ours."""
        overrides = dict(self.samplers.get(spec.sampler, {}))
        is_spaced = spec.spacing is not None or spec.sigmas is not None
        if spec.spacing is not None:
            overrides.pop("timestep_spacing", None)
        is_theirs = self.steps is not Steps.CONTINUOUS or (bool(overrides) and not is_spaced)
        return self.steps if is_theirs else Steps.EXACT, overrides


_TO_SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
_SD_STEPS = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}

PROFILES: Mapping[str, Profile] = {
    "cynosure": Profile(clips_before=True, clips=True),
    "adm": Profile(
        clips_before=True,
        clips_after=False,
        clips=True,
        classifier_at_mean=True,
        rounding=Rounding.TRUNCATE_HALF,
        respaces=True,
    ),
    "glide": Profile(clips_before=True, clips_after=False, clips=True, classifier_at_mean=True, respaces=True),
    "dpm-solver": Profile(
        steps=Steps.CONTINUOUS, samplers=dict.fromkeys(("dpmpp_2m", "dpmpp_3m", "dpm_single"), _TO_SIGMA_MIN)
    ),
    "sd": Profile(
        rounding=Rounding.TRUNCATE,
        strength=StrengthRule.SD,
        samplers=dict.fromkeys(("ddim", "pndm"), _SD_STEPS),
    ),
    "diffusers": Profile(steps=Steps.FOLDER, keeps_noise=("ddim",), rescales_output=True, skips_negative=False),
}


def to_uint8(pictures: Tensor, rounding: Rounding) -> Tensor:
    """Float pictures (B,C,H,W) in [-1, 1] to `uint8` (B,H,W,C)."""
    pictures = pictures.clamp(-1, 1).permute(0, 2, 3, 1)
    match rounding:
        case Rounding.NEAREST:
            return ((pictures + 1) * 127.5).round().to(torch.uint8)
        case Rounding.TRUNCATE_HALF:
            return ((pictures + 1) * 127.5).to(torch.uint8)
        case Rounding.TRUNCATE:
            return (((pictures + 1) / 2) * 255).to(torch.uint8)


def fitted(picture: NDArray[np.uint8], size: tuple[int, int], channels: int) -> Tensor:
    """Resize a picture (h,w,c) and convert it to grey or RGB: float (channels,height,width) in 0..255."""
    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    resized = image.convert("L" if channels == 1 else "RGB").resize(size[::-1], Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(resized, dtype=np.float32)).reshape(*size, channels).permute(2, 0, 1)
