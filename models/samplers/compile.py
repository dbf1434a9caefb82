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

from models.samplers.folder import as_key, folder_limits, folder_sampler
from models.samplers.kinds import FLOW_PREDICTION, SAMPLERS, NotLinear, Path, UnknownSampler
from models.samplers.levels import data_factors, levels_of
from models.samplers.probe import Probe
from models.samplers.respacing import InvalidRespacing, adm_table, respaced
from models.samplers.schedulers import build_scheduler, set_timesteps
from models.samplers.table import CoefficientTable
from models.spec import Steps

# "sample" first: the output is then D, so the weights suffer no cancellation between large numbers
_PROBED_AS = ("sample", "v_prediction", "epsilon")
PROBED_STEPS = (4, 10)
"""Steps with which `max_steps` tries a sampler. Many more may fail, by repeating a timestep or a noise level."""


@functools.lru_cache(maxsize=128)
def _max_steps(name: str, pack_config_json: str) -> int:
    pack_config = json.loads(pack_config_json)
    total = int(pack_config["num_train_timesteps"])
    try:
        for steps in PROBED_STEPS:
            compile_table(name, pack_config, steps=min(total, steps))
    except NotLinear:
        return 0
    scheduler = build_scheduler(name, pack_config, prediction_type="epsilon")
    if SAMPLERS[name].path is not Path.PACK or pack_config["prediction_type"] == FLOW_PREDICTION:
        return total  # its noise levels are not the pack's timesteps
    set_timesteps(name, scheduler, 1, pack_config)
    if scheduler.timesteps.is_floating_point():
        return total  # between the pack's timesteps

    def exceeds(steps: int) -> bool:
        """Whether a timestep repeats, or an offset of the pack's puts one past the last."""
        set_timesteps(name, scheduler, steps, pack_config)
        timesteps = scheduler.timesteps
        by_design = isinstance(scheduler, diffusers.PNDMScheduler)  # its second step is taken twice
        return len(timesteps.unique()) + by_design < len(timesteps) or int(timesteps.max()) >= total

    if not exceeds(total):  # true for most samplers; saves the bisection, as some schedulers take a third of a second
        return total
    return bisect.bisect_left(range(total), True, lo=1, key=exceeds) - 1


def _with_prediction(pack_config: Mapping[str, Any], prediction_type: str | None) -> dict[str, Any]:
    """A pack's scheduler configuration, with what its network predicts."""
    return {**pack_config, "prediction_type": prediction_type or pack_config.get("prediction_type", "epsilon")}


def max_steps(name: str, pack_config: Mapping[str, Any], prediction_type: str | None = None) -> int:
    """Largest number of steps that sampler `name` can take on the pack's noise schedule; 0 if it can't run on it.

    Multistep solvers skip the last timestep, and in log-SNR also a cosine schedule's noisiest ones. More steps than
    timesteps would repeat one, and divide by the zero difference between the two.

    Raises:
        UnknownSampler: no such name.
    """
    return _max_steps(name, as_key(_with_prediction(pack_config, prediction_type)))


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
    which: Steps = Steps.EXACT,
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
        which: whose steps the table follows.
        prediction_type: what the network predicts; the pack's own by default.

    Raises:
        UnknownSampler: no such name.
        NotLinear: the table can't express the scheduler's step, or the scheduler lacks an option.
        InvalidRespacing: the respacing string is invalid, or not for this sampler or pack.
    """
    if name not in SAMPLERS:
        raise UnknownSampler(f"no sampler '{name}'; known: {', '.join(SAMPLERS)}")
    described = _with_prediction(pack_config, prediction_type)
    pack_config_json, is_straight = as_key(described), described["prediction_type"] == FLOW_PREDICTION
    if respacing is not None:
        if not SAMPLERS[name].respaces:
            raise InvalidRespacing(f"respacing is for ddpm and ddim; the sampler here is '{name}'")
        if is_straight:
            raise InvalidRespacing(
                "respacing chooses from a schedule of betas; this pack was trained on straight paths"
            )
        timesteps = respaced(respacing, int(pack_config["num_train_timesteps"]))
        return _compile_adm(name, pack_config_json, tuple(timesteps), eta, begin)
    is_own = False
    if which is Steps.FOLDER:
        folder_limits(name, pack_config)  # refused here if the guidance stack can't repeat it
        is_own = name == folder_sampler(pack_config)
    if is_straight and SAMPLERS[name].path is Path.PACK and not is_own:
        overrides = {**overrides, **_straight(name, pack_config)}
    if which is Steps.CONTINUOUS:
        overrides = {**overrides, "lower_order_final": _ends_in_lower_order(name, steps)}
    configured = _Configured(name, spacing, sigmas, tuple(sorted(overrides.items())), which)
    return _compile(configured, pack_config_json, steps, eta, begin)


class _Configured(NamedTuple):
    name: str
    spacing: str | None
    sigmas: str | None
    overrides: tuple[tuple[str, Any], ...]
    which: Steps


@functools.lru_cache(maxsize=128)
def _compile_adm(
    name: str, pack_config_json: str, timesteps: tuple[int, ...], eta: float, begin: int
) -> CoefficientTable:
    pack_config = json.loads(pack_config_json)
    factors = functools.partial(data_factors, pack_config["prediction_type"])
    return adm_table(name, pack_config, timesteps, eta=eta, factors=factors, begin=begin)


@functools.lru_cache(maxsize=512)
def _compile(configured: _Configured, pack_config_json: str, steps: int, eta: float, begin: int) -> CoefficientTable:
    pack_config: dict[str, Any] = json.loads(pack_config_json)
    name, spacing, sigmas, overrides, which = configured
    predicted = str(pack_config["prediction_type"])
    # PNDM's multistep formula is for ε (Liu et al. 2022, eq. 12); its scheduler mixes whatever the network predicts.
    mixes_outputs = SAMPLERS[name].mixes_outputs
    candidates = _PROBED_AS if not mixes_outputs else (predicted,) if which is Steps.FOLDER else ("epsilon",)
    last_refusal: Exception | None = None
    for probed_as in candidates:
        try:
            scheduler = build_scheduler(
                name,
                pack_config,
                prediction_type=probed_as,
                spacing=spacing,
                sigmas=sigmas,
                overrides=dict(overrides),
                which=which,
            )
            set_timesteps(name, scheduler, steps, pack_config, which)
            probe = Probe(
                name,
                scheduler,
                eta=eta,
                probed_as=probed_as,
                levels=levels_of(pack_config),
                begin=begin,
                is_exact=which is Steps.EXACT,
            )
            if "use_flow_sigmas" in dict(overrides) and float(scheduler.sigmas[-1]) > 0.001:
                raise NotLinear(f"sampler '{name}' ({SAMPLERS[name].scheduler}) stops short of a straight path's end")
            return probe.table(predicted)
        except NotImplementedError as error:
            last_refusal = error
        except ValueError as error:
            if isinstance(error, NotLinear):
                raise
            if "rediction" not in str(error):
                raise _refusal(name, steps, error) from error
            last_refusal = error
        except (IndexError, RuntimeError, AssertionError, ZeroDivisionError) as error:  # a step that isn't there
            raise _refusal(name, steps, error) from error
    raise NotLinear(f"sampler '{name}' can't take a network that predicts '{predicted}'") from last_refusal


def _refusal(name: str, steps: int, error: Exception) -> NotLinear:
    reason = str(error) or "it says so itself"
    return NotLinear(f"sampler '{name}' ({SAMPLERS[name].scheduler}) can't take {steps} steps here: {reason}")


def _ends_in_lower_order(name: str, steps: int) -> bool:
    """Whether DPM-Solver's published code takes its last steps with a lower order; diffusers does below 15 steps."""
    return steps % 2 == 1 if name == "dpm_single" else steps < 10


def _straight(name: str, pack_config: Mapping[str, Any]) -> dict[str, Any]:
    """Configure a sampler for a pack that was trained on straight paths."""
    accepted = inspect.signature(getattr(diffusers, SAMPLERS[name].scheduler).__init__).parameters
    if "use_flow_sigmas" not in accepted:
        raise NotLinear(f"sampler '{name}' follows a schedule of betas, and the pack was trained on straight paths")
    return {"use_flow_sigmas": True, "use_dynamic_shifting": False, "flow_shift": float(pack_config.get("shift", 1.0))}
