"""Compiles a diffusers scheduler into a `CoefficientTable` by probing it.

At every step the scheduler gets one-hot vectors instead of the latent, the model's output and the noise, and stores
what it needs of them. Its result is then a weighted sum of those vectors, from which the weights can be read: no
formula is copied, so the table follows the installed scheduler by construction. The part of the result outside the
table's columns is the residual; a scheduler with a residual is refused.
"""

from __future__ import annotations

import bisect
import functools
import inspect
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import diffusers

from models.samplers.probe import Levels, Probe, StraightLevels, data_factors
from models.samplers.respacing import InvalidRespacing, adm_table, respaced
from models.samplers.schedulers import (
    FLOW_PREDICTION,
    SAMPLERS,
    NotLinear,
    Path,
    UnknownSampler,
    build_scheduler,
    relevant,
    set_timesteps,
)
from models.samplers.table import CoefficientTable

# "sample" first: the output is then D, so the weights suffer no cancellation between large numbers
_PROBED_AS = ("sample", "v_prediction", "epsilon")
PROBED_STEPS = 10
"""Steps with which `max_steps` tries a sampler. Many more may fail, by repeating a timestep or a noise level."""


@functools.lru_cache(maxsize=128)
def _max_steps(name: str, pack_config_json: str, prediction_type: str) -> int:
    pack_config = json.loads(pack_config_json)
    total = int(pack_config["num_train_timesteps"])
    try:
        compile_table(name, pack_config, steps=min(total, PROBED_STEPS), prediction_type=prediction_type)
    except NotLinear:
        return 0
    scheduler = build_scheduler(name, pack_config, prediction_type="epsilon")
    if SAMPLERS[name].path is not Path.PACK or prediction_type == FLOW_PREDICTION:
        return total  # its noise levels are not the pack's timesteps

    def exceeds(steps: int) -> bool:
        """Whether a timestep repeats, or an offset of the pack's puts one past the last."""
        set_timesteps(scheduler, steps)
        timesteps = scheduler.timesteps
        if timesteps.is_floating_point():
            return False
        by_design = isinstance(scheduler, diffusers.PNDMScheduler)  # its second step is taken twice
        return len(timesteps.unique()) + by_design < len(timesteps) or int(timesteps.max()) >= total

    if not exceeds(total):  # true for most samplers; saves the bisection, as some schedulers take a third of a second
        return total
    return bisect.bisect_left(range(total), True, lo=1, key=exceeds) - 1


def max_steps(name: str, pack_config: Mapping[str, Any], prediction_type: str | None = None) -> int:
    """Largest number of steps that sampler `name` can take on the pack's noise schedule; 0 if it can't run on it.

    Multistep solvers skip the last timestep, and in log-SNR also a cosine schedule's noisiest ones. More steps than
    timesteps would repeat one, and divide by the zero difference between the two.

    Raises:
        UnknownSampler: no such name.
    """
    predicted = prediction_type or str(pack_config.get("prediction_type", "epsilon"))
    return _max_steps(name, relevant(pack_config), predicted)


def compile_table(
    name: str,
    pack_config: Mapping[str, Any],
    *,
    steps: int,
    eta: float = 0.0,
    spacing: str | None = None,
    sigmas: str | None = None,
    respacing: str | None = None,
    begin: int = 0,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    prediction_type: str | None = None,
) -> CoefficientTable:
    """Compile sampler `name` for a pack's noise schedule. Results are cached.

    Args:
        name: a key of `SAMPLERS`.
        pack_config: the pack's scheduler configuration (betas and prediction type).
        steps: sampling steps, 1..num_train_timesteps. Second-order samplers evaluate the network about twice per step.
        eta: share of fresh noise, for samplers that take it.
        spacing: one of `SPACINGS`; the sampler's own by default.
        sigmas: a key of `SIGMA_SCHEDULES`; the sampler's own by default.
        respacing: ADM's timestep string for `ddpm` and `ddim`, as `respaced` reads it; `steps` is then ignored.
        begin: steps skipped at the noisy end, for image-to-image.
        overrides: additional configuration of the scheduler.
        prediction_type: what the network predicts; the pack's own by default.

    Raises:
        UnknownSampler: no such name.
        NotLinear: the table can't express the scheduler's step, or the scheduler lacks an option.
        InvalidRespacing: the respacing string is invalid, or not for this sampler or pack.
    """
    if name not in SAMPLERS:
        raise UnknownSampler(f"no sampler '{name}'; known: {', '.join(SAMPLERS)}")
    predicted = prediction_type or str(pack_config.get("prediction_type", "epsilon"))
    if respacing is not None:
        if not SAMPLERS[name].respaces:
            raise InvalidRespacing(f"respacing is for ddpm and ddim; the sampler here is '{name}'")
        if predicted == FLOW_PREDICTION:
            raise InvalidRespacing(
                "respacing chooses from a schedule of betas; this pack was trained on straight paths"
            )
        timesteps = respaced(respacing, int(pack_config["num_train_timesteps"]))
        return _compile_adm(name, relevant(pack_config), tuple(timesteps), eta, begin, predicted)
    if predicted == FLOW_PREDICTION and SAMPLERS[name].path is Path.PACK:
        overrides = {**overrides, **_straight(name, pack_config)}
    configured = _Configured(name, spacing, sigmas, tuple(sorted(overrides.items())))
    return _compile(configured, relevant(pack_config), steps, eta, begin, predicted)


class _Configured(NamedTuple):
    name: str
    spacing: str | None
    sigmas: str | None
    overrides: tuple[tuple[str, Any], ...]


@functools.lru_cache(maxsize=128)
def _compile_adm(
    name: str, pack_config_json: str, timesteps: tuple[int, ...], eta: float, begin: int, prediction_type: str
) -> CoefficientTable:
    factors = functools.partial(data_factors, prediction_type)
    return adm_table(name, json.loads(pack_config_json), timesteps, eta=eta, factors=factors, begin=begin)


@functools.lru_cache(maxsize=512)
def _compile(
    configured: _Configured, pack_config_json: str, steps: int, eta: float, begin: int, prediction_type: str
) -> CoefficientTable:
    pack_config: dict[str, Any] = json.loads(pack_config_json)
    name, spacing, sigmas, overrides = configured
    levels = (StraightLevels if prediction_type == FLOW_PREDICTION else Levels)(pack_config)
    last_refusal: Exception | None = None
    for probed_as in (prediction_type,) if SAMPLERS[name].mixes_outputs else _PROBED_AS:
        try:
            scheduler = build_scheduler(
                name,
                pack_config,
                prediction_type=probed_as,
                spacing=spacing,
                sigmas=sigmas,
                overrides=dict(overrides),
            )
            probe = Probe(name, scheduler, steps, eta, probed_as, levels, begin)
            if "use_flow_sigmas" in dict(overrides) and float(scheduler.sigmas[-1]) > 0.001:
                raise NotLinear(f"sampler '{name}' ({SAMPLERS[name].scheduler}) stops short of a straight path's end")
            return probe.table(prediction_type)
        except NotImplementedError as error:
            last_refusal = error
        except ValueError as error:
            if "rediction" not in str(error):
                raise
            last_refusal = error
        except (IndexError, RuntimeError, AssertionError, ZeroDivisionError) as error:  # a step that isn't there
            scheduler_name = SAMPLERS[name].scheduler
            raise NotLinear(f"sampler '{name}' ({scheduler_name}) can't take {steps} steps here: {error}") from error
    raise NotLinear(f"sampler '{name}' can't take a network that predicts '{prediction_type}'") from last_refusal


def _straight(name: str, pack_config: Mapping[str, Any]) -> dict[str, Any]:
    """Configure a sampler for a pack that was trained on straight paths."""
    accepted = inspect.signature(getattr(diffusers, SAMPLERS[name].scheduler).__init__).parameters
    if "use_flow_sigmas" not in accepted:
        raise NotLinear(f"sampler '{name}' follows a schedule of betas, and the pack was trained on straight paths")
    return {"use_flow_sigmas": True, "use_dynamic_shifting": False, "flow_shift": float(pack_config.get("shift", 1.0))}
