"""Builds diffusers' schedulers, by our names, on a pack's noise schedule."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import diffusers
import numpy as np
from torch import Tensor

COSINE_LAMBDA_MIN = -5.1  # diffusers' documented floor of the half log-SNR for cosine schedules


class UnknownSampler(ValueError):
    """No sampler of that name."""


class NotLinear(ValueError):
    """The scheduler's step is not a weighted sum of the table's columns."""


class Path(StrEnum):
    """The mixtures of picture and noise that a sampler passes through.

    On a path other than the pack's, the network gets the timestep, in general fractional, at which the pack has the
    same signal-to-noise ratio.
    """

    PACK = "pack"
    EDM = "edm"  # x₀ + σε, σ from 80 down to 0.002 (Karras et al. 2022)
    FLOW = "flow"  # (1−σ)x₀ + σε, σ from 1 to 0 (Liu et al. 2022)
    ANGLE = "angle"  # √(1−β²)x₀ + βε, β = sin²


@dataclass(frozen=True, kw_only=True)
class SamplerKind:
    """How a sampler's name maps to a diffusers scheduler.

    Attributes:
        scheduler: class name in diffusers.
        overrides: configuration that differs from the scheduler's own defaults.
        takes_eta: whether `step` has an `eta`.
        respaces: whether it has a form on ADM's timesteps (models/samplers/respacing.py).
        carried: the attribute in which a predictor-corrector keeps its corrected latent between steps.
        noised: the attribute in which it keeps the noise of the previous step.
        mixes_outputs: whether it mixes the network's raw outputs, so that their prediction type matters.
        path: the mixtures of picture and noise it passes through; the pack's by default.
    """

    scheduler: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    takes_eta: bool = False
    respaces: bool = False
    carried: str | None = None
    noised: str | None = None
    mixes_outputs: bool = False
    path: Path = Path.PACK


SAMPLERS: Mapping[str, SamplerKind] = {
    "ddpm": SamplerKind(scheduler="DDPMScheduler", respaces=True, overrides={"timestep_spacing": "trailing"}),
    "ddim": SamplerKind(
        scheduler="DDIMScheduler", respaces=True, overrides={"timestep_spacing": "trailing"}, takes_eta=True
    ),
    "euler": SamplerKind(scheduler="EulerDiscreteScheduler"),
    "euler_ancestral": SamplerKind(scheduler="EulerAncestralDiscreteScheduler"),
    # The trapezoid is unstable over the huge first step of a cosine schedule; Karras spacing has no such step.
    "heun": SamplerKind(scheduler="HeunDiscreteScheduler", overrides={"use_karras_sigmas": True}),
    "lms": SamplerKind(scheduler="LMSDiscreteScheduler"),
    "dpmpp_2m": SamplerKind(scheduler="DPMSolverMultistepScheduler"),
    "dpmpp_3m": SamplerKind(scheduler="DPMSolverMultistepScheduler", overrides={"solver_order": 3}),
    "dpmpp_2m_sde": SamplerKind(
        scheduler="DPMSolverMultistepScheduler", overrides={"algorithm_type": "sde-dpmsolver++"}
    ),
    "dpm_single": SamplerKind(scheduler="DPMSolverSinglestepScheduler", overrides={"lower_order_final": True}),
    "deis": SamplerKind(scheduler="DEISMultistepScheduler"),
    "kdpm2": SamplerKind(scheduler="KDPM2DiscreteScheduler"),
    "tcd": SamplerKind(scheduler="TCDScheduler"),
    "lcm": SamplerKind(scheduler="LCMScheduler"),
    "unipc": SamplerKind(scheduler="UniPCMultistepScheduler", carried="last_sample"),
    "kdpm2_ancestral": SamplerKind(scheduler="KDPM2AncestralDiscreteScheduler", overrides={"use_karras_sigmas": True}),
    "pndm": SamplerKind(scheduler="PNDMScheduler", overrides={"skip_prk_steps": True}, mixes_outputs=True),
    "sa_solver": SamplerKind(scheduler="SASolverScheduler", carried="last_sample", noised="last_noise"),
    "ipndm": SamplerKind(scheduler="IPNDMScheduler", path=Path.ANGLE),
    "edm_euler": SamplerKind(scheduler="EDMEulerScheduler", path=Path.EDM),
    "edm_dpmpp_2m": SamplerKind(scheduler="EDMDPMSolverMultistepScheduler", path=Path.EDM),
    "flow_euler": SamplerKind(scheduler="FlowMatchEulerDiscreteScheduler", path=Path.FLOW),
}
CFG_PLUS_PLUS_SAMPLERS = ("ddim", "euler")
"""The samplers that CFG++ is defined for: those with one prediction and one direction per step."""
SIGMA_SCHEDULES = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
}
"""Spacing of the steps on the noise scale: Karras et al. 2022 (ρ = 7), uniform in log σ, or a beta distribution."""
SPACINGS = ("leading", "linspace", "trailing")
"""Timesteps that N steps use: counted from 0 up, both ends included, or from T−1 down (Lin et al. 2023, table 2)."""
_FROM_PACK = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "set_alpha_to_one",
    "steps_offset",
    "shift",
    "use_dynamic_shifting",
)
FLOW_PREDICTION = "flow_prediction"
"""Prediction type of networks trained on straight paths from noise to picture: ε − x₀ (Liu et al. 2022)."""
_PROBED_WITHOUT = {"clip_sample": False, "thresholding": False}  # the guidance stack clips D itself


def build_scheduler(
    name: str,
    pack_config: Mapping[str, Any],
    *,
    prediction_type: str,
    spacing: str | None = None,
    sigmas: str | None = None,
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Build the diffusers scheduler for `name`, on the pack's noise schedule, without clipping.

    Raises:
        UnknownSampler: no such name.
        NotLinear: the sampler does not support the spacing or the sigmas.
    """
    if name not in SAMPLERS:
        raise UnknownSampler(f"no sampler '{name}'; known: {', '.join(SAMPLERS)}")
    kind = SAMPLERS[name]
    scheduler_class = getattr(diffusers, kind.scheduler)
    accepted = inspect.signature(scheduler_class.__init__).parameters
    config = {key: pack_config[key] for key in _FROM_PACK if pack_config.get(key) is not None}
    if pack_config.get("beta_schedule") == "squaredcos_cap_v2":
        config["lambda_min_clipped"] = COSINE_LAMBDA_MIN
    config |= {**_PROBED_WITHOUT, **kind.overrides, **overrides, "prediction_type": prediction_type}
    if spacing is not None:
        if "timestep_spacing" not in accepted or spacing not in SPACINGS:
            raise NotLinear(f"sampler '{name}' has no timestep spacing '{spacing}'")
        config["timestep_spacing"] = spacing
    if sigmas is not None:
        if SIGMA_SCHEDULES.get(sigmas) not in accepted:
            raise NotLinear(f"sampler '{name}' has no sigmas '{sigmas}'")
        config |= {key: sigmas == schedule for schedule, key in SIGMA_SCHEDULES.items()}
    return scheduler_class(**{key: value for key, value in config.items() if key in accepted})


def options(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The spacings and the sigma schedules that sampler `name` supports."""
    accepted = inspect.signature(getattr(diffusers, SAMPLERS[name].scheduler).__init__).parameters
    spacings = SPACINGS if "timestep_spacing" in accepted else ()
    return spacings, tuple(schedule for schedule, key in SIGMA_SCHEDULES.items() if key in accepted)


def relevant(pack_config: Mapping[str, Any]) -> str:
    """The part of a pack's configuration that schedulers read, as JSON."""
    return json.dumps({key: pack_config[key] for key in _FROM_PACK if key in pack_config}, sort_keys=True)


def set_timesteps(scheduler: Any, steps: int) -> None:
    """Call the scheduler's `set_timesteps` with the arguments it needs for this number of steps."""
    arguments: dict[str, Any] = {}
    if scheduler.config.get("use_dynamic_shifting"):
        # A scheduler that takes a shift for every picture also takes the levels: evenly spaced from 1 down to 1/N.
        arguments = {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": math.log(scheduler.config.shift)}
    elif steps > scheduler.config.get("original_inference_steps", steps):
        # LCM and TCD choose their steps from a uniform grid of 50; more steps need a finer uniform grid.
        total = scheduler.config.num_train_timesteps
        arguments["original_inference_steps"] = next(n for n in range(steps, total + 1) if total % n == 0)
    scheduler.set_timesteps(None if "sigmas" in arguments else steps, **arguments)
    for name, value in vars(scheduler).items():
        if name.startswith("sigmas") and isinstance(value, Tensor):
            # In float32 the ancestral samplers' σ_to² − σ_up² cancels to below zero between distant sigmas.
            setattr(scheduler, name, value.double())
