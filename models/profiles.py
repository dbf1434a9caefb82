"""Profiles: the conventions of a system, so that its pictures can be had again.

They differ in small ways that move pictures: where D is clipped (on a tiny model at scale 5 the orders differ by 0.57
of a [-1, 1] picture), where the classifier's term enters, which timesteps N steps take, how strength is counted, and
how floats become bytes.
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


class Rounding(StrEnum):
    """How a float picture in [-1, 1] becomes `uint8`."""

    NEAREST = "nearest"
    TRUNCATE_HALF = "truncate_half"  # (x+1)·127.5, cut off
    TRUNCATE = "truncate"  # (x+1)/2·255, cut off


class StrengthRule(StrEnum):
    """What `strength` means for image-to-image."""

    DIFFUSERS = "diffusers"  # the last int(N·strength) steps, from the noise level of the first of them
    SD = "sd"  # the same steps, from the noise level one before


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A set of conventions.

    Attributes:
        clips_before: D is limited before the classifier's term is added.
        clips_after: D is limited after everything.
        clips: whether D is clipped where a request doesn't say.
        classifier_at_mean: ancestral sampling adds Σ·s·∇ₓ log p(y | xₜ, t) to the mean (ADM's `condition_mean`), and
            D is left alone.
        rounding: floats to bytes.
        strength: rule of image-to-image.
        samplers: configuration of diffusers' schedulers that differs from ours, by sampler.
        respaces: ddpm and ddim take ADM's own timesteps and variances, float64 and endpoints included.
    """

    clips_before: bool = False
    clips_after: bool = True
    clips: bool = False
    classifier_at_mean: bool = False
    rounding: Rounding = Rounding.NEAREST
    strength: StrengthRule = StrengthRule.DIFFUSERS
    samplers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    respaces: bool = False


_TO_SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
_SD_STEPS = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}
_LEADING = {"timestep_spacing": "leading"}

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
    "dpm-solver": Profile(samplers=dict.fromkeys(("dpmpp_2m", "dpmpp_3m", "dpm_single"), _TO_SIGMA_MIN)),
    "sd": Profile(
        rounding=Rounding.TRUNCATE,
        strength=StrengthRule.SD,
        samplers=dict.fromkeys(("ddim", "pndm"), _SD_STEPS),
    ),
    "diffusers": Profile(samplers=dict.fromkeys(("ddim", "ddpm"), _LEADING)),
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
    """A picture (h,w,c) as float (channels,height,width) in 0..255, resized and made grey or coloured as needed."""
    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    resized = image.convert("L" if channels == 1 else "RGB").resize(size[::-1], Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(resized, dtype=np.float32)).reshape(*size, channels).permute(2, 0, 1)
