"""The samplers: our names, and the diffusers schedulers behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class UnknownSampler(ValueError):
    """No sampler of that name."""


class NotLinear(ValueError):
    """The scheduler's step is not a weighted sum of the table's columns."""


class Path(StrEnum):
    """The mixtures of picture and noise that a sampler passes through.

    On a path other than the pack's, the network gets the timestep, in general fractional, at which the pack has the
    same signal-to-noise ratio; the path begins and ends at the pack's own noisiest and cleanest level.
    """

    PACK = "pack"
    EDM = "edm"  # x₀ + σε (Karras et al. 2022)
    FLOW = "flow"  # (1−σ)x₀ + σε (Liu et al. 2022)
    ANGLE = "angle"  # √(1−β²)x₀ + βε, β = sin²


@dataclass(frozen=True, kw_only=True)
class SamplerKind:
    """How a sampler's name maps to a diffusers scheduler.

    Attributes:
        scheduler: class name in diffusers.
        meaning: the configuration that the name stands for, such as a solver's order.
        preferred: configuration that we choose, where neither the request nor the folder does.
        limits: whether the scheduler can limit D: it reads `clip_sample` or `thresholding`.
        even_gaps: whether its step assumes that timesteps lie ⌊T/N⌋ apart.
        takes_eta: whether `step` has an `eta`.
        respaces: whether it has a form on ADM's timesteps (models/samplers/respacing.py).
        carried: the attribute in which a predictor-corrector keeps its corrected latent between steps.
        noised: the attribute in which it keeps the noise of the previous step.
        mixes_outputs: whether it mixes the network's raw outputs, so that their prediction type matters.
        path: the mixtures of picture and noise it passes through; the pack's by default.
    """

    scheduler: str
    meaning: Mapping[str, Any] = field(default_factory=dict)
    preferred: Mapping[str, Any] = field(default_factory=dict)
    limits: bool = False
    even_gaps: bool = False
    takes_eta: bool = False
    respaces: bool = False
    carried: str | None = None
    noised: str | None = None
    mixes_outputs: bool = False
    path: Path = Path.PACK


_TRAILING = {"timestep_spacing": "trailing"}
_KARRAS = {"use_karras_sigmas": True}
_MULTISTEP = "DPMSolverMultistepScheduler"

SAMPLERS: Mapping[str, SamplerKind] = {
    "ddpm": SamplerKind(scheduler="DDPMScheduler", respaces=True, preferred=_TRAILING, limits=True),
    "ddim": SamplerKind(
        scheduler="DDIMScheduler",
        preferred=_TRAILING,
        takes_eta=True,
        respaces=True,
        even_gaps=True,
        limits=True,
    ),
    "euler": SamplerKind(scheduler="EulerDiscreteScheduler"),
    "euler_ancestral": SamplerKind(scheduler="EulerAncestralDiscreteScheduler"),
    # The trapezoid is unstable over the huge first step of a cosine schedule; Karras spacing has no such step.
    "heun": SamplerKind(scheduler="HeunDiscreteScheduler", preferred=_KARRAS, limits=True),
    "lms": SamplerKind(scheduler="LMSDiscreteScheduler"),
    "dpmpp_2m": SamplerKind(
        scheduler=_MULTISTEP, meaning={"algorithm_type": "dpmsolver++", "solver_order": 2}, limits=True
    ),
    "dpmpp_3m": SamplerKind(
        scheduler=_MULTISTEP, meaning={"algorithm_type": "dpmsolver++", "solver_order": 3}, limits=True
    ),
    "dpmpp_2m_sde": SamplerKind(
        scheduler=_MULTISTEP, meaning={"algorithm_type": "sde-dpmsolver++", "solver_order": 2}, limits=True
    ),
    "dpm_single": SamplerKind(
        scheduler="DPMSolverSinglestepScheduler", preferred={"lower_order_final": True}, limits=True
    ),
    "deis": SamplerKind(scheduler="DEISMultistepScheduler", limits=True),
    "kdpm2": SamplerKind(scheduler="KDPM2DiscreteScheduler"),
    "tcd": SamplerKind(scheduler="TCDScheduler"),
    "lcm": SamplerKind(scheduler="LCMScheduler", limits=True),
    "unipc": SamplerKind(scheduler="UniPCMultistepScheduler", carried="last_sample", limits=True),
    "kdpm2_ancestral": SamplerKind(scheduler="KDPM2AncestralDiscreteScheduler", preferred=_KARRAS),
    "pndm": SamplerKind(
        scheduler="PNDMScheduler", meaning={"skip_prk_steps": True}, even_gaps=True, mixes_outputs=True
    ),
    "sa_solver": SamplerKind(scheduler="SASolverScheduler", carried="last_sample", noised="last_noise", limits=True),
    "ipndm": SamplerKind(scheduler="IPNDMScheduler", path=Path.ANGLE),
    "edm_euler": SamplerKind(scheduler="EDMEulerScheduler", path=Path.EDM),
    "edm_dpmpp_2m": SamplerKind(scheduler="EDMDPMSolverMultistepScheduler", path=Path.EDM),
    "flow_euler": SamplerKind(scheduler="FlowMatchEulerDiscreteScheduler", path=Path.FLOW),
}
CFG_PLUS_PLUS_SAMPLERS = ("ddim", "euler")
"""The samplers that CFG++ is defined for: those with one prediction and one direction per step."""
FLOW_PREDICTION = "flow_prediction"
"""Prediction type of networks trained on straight paths from noise to picture: ε − x₀ (Liu et al. 2022)."""
