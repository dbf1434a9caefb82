"""Builds diffusers' schedulers, by our names, and sets their steps."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from models.samplers.folder import folder_config, folder_sampler
from models.samplers.kinds import FLOW_PREDICTION, SAMPLERS, NotLinear, Path, SamplerKind, UnknownSampler
from models.samplers.levels import COSINE_LAMBDA_MIN, alpha_bars, continuous_steps, noise_range
from models.spec import Steps

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
    "shift_terminal",
    "time_shift_type",
    "use_dynamic_shifting",
)
_PROBED_WITHOUT = {"clip_sample": False, "thresholding": False}  # the guidance stack limits D itself
_LEVELS = ("sigmas", "alphas_cumprod", "final_alpha_cumprod")
_DENOISED_BELOW = 2**-24  # ᾱ that diffusers gives the noisiest timestep of a schedule that ends in pure noise


def build_scheduler(
    name: str,
    pack_config: Mapping[str, Any],
    *,
    prediction_type: str,
    spacing: str | None = None,
    sigmas: str | None = None,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    which: Steps = Steps.EXACT,
) -> Any:
    """Build the diffusers scheduler for `name`, on the pack's noise schedule, without clipping.

    Raises:
        UnknownSampler: no such name.
        NotLinear: the sampler does not support the spacing or the sigmas, or can't follow the folder's scheduler.
    """
    if name not in SAMPLERS:
        raise UnknownSampler(f"no sampler '{name}'; known: {', '.join(SAMPLERS)}")
    kind = SAMPLERS[name]
    scheduler_class = getattr(diffusers, kind.scheduler)
    accepted = inspect.signature(scheduler_class.__init__).parameters
    if which is Steps.FOLDER:
        own = {} if name == folder_sampler(pack_config) else kind.meaning
    else:
        own = _on_the_packs_schedule(kind, pack_config, accepted)
    config = {**own, **_PROBED_WITHOUT, **overrides, "prediction_type": prediction_type}
    if spacing is not None:
        if "timestep_spacing" not in accepted or spacing not in SPACINGS:
            raise NotLinear(f"sampler '{name}' has no timestep spacing '{spacing}'")
        config["timestep_spacing"] = spacing
    if sigmas is not None:
        if SIGMA_SCHEDULES.get(sigmas) not in accepted:
            raise NotLinear(f"sampler '{name}' has no sigmas '{sigmas}'")
        config |= {key: sigmas == schedule for schedule, key in SIGMA_SCHEDULES.items()}
    config = {key: value for key, value in config.items() if key in accepted}
    built_class = _class_of(kind.scheduler)
    if which is Steps.FOLDER:
        return built_class.from_config(dict(folder_config(pack_config)), **config)
    return built_class(**config)


@functools.cache
def _class_of(scheduler: str) -> Any:
    """The class of diffusers, whose constructor sets no more than one step if it sets any.

    KDPM2 sets a step for each timestep of training there, which takes a second; `set_timesteps` replaces them.
    """
    original = getattr(diffusers, scheduler)
    if "num_train_timesteps" not in inspect.signature(original.set_timesteps).parameters:
        return original

    def set_steps(self: Any, steps: int, device: Any = None, num_train_timesteps: int | None = None) -> None:
        is_constructing = num_train_timesteps is not None  # nobody else says how many there are
        original.set_timesteps(self, 1 if is_constructing else steps, device, num_train_timesteps)

    return type(scheduler, (original,), {"set_timesteps": set_steps})


def _on_the_packs_schedule(
    kind: SamplerKind, pack_config: Mapping[str, Any], accepted: Mapping[str, Any]
) -> dict[str, Any]:
    config = {key: pack_config[key] for key in _FROM_PACK if pack_config.get(key) is not None}
    if config.get("beta_schedule") == "squaredcos_cap_v2":
        config["lambda_min_clipped"] = COSINE_LAMBDA_MIN
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in accepted:
        bars = np.clip(alpha_bars(pack_config), _DENOISED_BELOW, 1.0)
        config["trained_betas"] = (1 - bars / np.append(1.0, bars[:-1])).tolist()
    if kind.path is Path.EDM:
        config["sigma_min"], config["sigma_max"] = noise_range(pack_config)
    return config | {**kind.meaning, **kind.preferred}


def options(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The spacings and the sigma schedules that sampler `name` supports."""
    accepted = inspect.signature(getattr(diffusers, SAMPLERS[name].scheduler).__init__).parameters
    spacings = SPACINGS if "timestep_spacing" in accepted else ()
    return spacings, tuple(schedule for schedule, key in SIGMA_SCHEDULES.items() if key in accepted)


def set_timesteps(
    name: str, scheduler: Any, steps: int, pack_config: Mapping[str, Any], which: Steps = Steps.EXACT
) -> None:
    """Set the scheduler's timesteps and noise levels for this number of steps."""
    arguments: dict[str, Any] = {}
    if SAMPLERS[name].path is Path.FLOW:
        arguments = _flow_levels(steps, pack_config)
    elif steps > scheduler.config.get("original_inference_steps", steps):
        # LCM and TCD choose their steps from a uniform grid of 50; more steps need a finer uniform grid.
        total = scheduler.config.num_train_timesteps
        arguments["original_inference_steps"] = next(n for n in range(steps, total + 1) if total % n == 0)
    scheduler.set_timesteps(None if "sigmas" in arguments else steps, **arguments)
    for attribute, value in vars(scheduler).items():
        if attribute.startswith(_LEVELS) and isinstance(value, Tensor):
            # In float32 the ancestral samplers' σ_to² − σ_up² cancels to below zero between distant sigmas, and so do
            # PNDM's terms at the noisy end of a cosine schedule.
            setattr(scheduler, attribute, value.double())
    if isinstance(scheduler, diffusers.LMSDiscreteScheduler):
        scheduler.get_lms_coefficient = functools.partial(_lms_coefficient, scheduler)
    if which is Steps.CONTINUOUS:
        scheduler.timesteps, scheduler.sigmas = map(torch.from_numpy, continuous_steps(pack_config, steps))
    if SAMPLERS[name].path is Path.ANGLE:
        least, greatest = (math.asin(math.sin(math.atan(ratio)) ** 0.5) for ratio in noise_range(pack_config))
        scheduler.betas = torch.from_numpy(np.append(np.sin(np.linspace(greatest, least, steps)) ** 2, 0.0))
        scheduler.alphas = (1 - scheduler.betas**2) ** 0.5


def _lms_coefficient(scheduler: Any, order: int, step: int, current_order: int) -> float:
    """The scheduler's own integral, over levels that are plain numbers: of tensors, 50 steps would take a second."""
    sigmas = scheduler.sigmas
    scheduler.sigmas = sigmas.tolist()
    try:
        return type(scheduler).get_lms_coefficient(scheduler, order, step, current_order)
    finally:
        scheduler.sigmas = sigmas


def _flow_levels(steps: int, pack_config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `FlowMatchEulerDiscreteScheduler.set_timesteps`."""
    arguments: dict[str, Any] = {}
    if pack_config.get("prediction_type") != FLOW_PREDICTION:
        least, greatest = (ratio / (1 + ratio) for ratio in noise_range(pack_config))
        arguments["sigmas"] = np.linspace(greatest, least, steps)
    elif str(pack_config.get("_pipeline")).startswith("Flux"):  # its pipelines choose the levels, up to the shift
        arguments["sigmas"] = np.linspace(1.0, 1 / steps, steps)
    if pack_config.get("use_dynamic_shifting"):
        arguments["mu"] = math.log(pack_config["shift"])
    return arguments
