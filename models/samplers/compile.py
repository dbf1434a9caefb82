"""Compiling a diffusers scheduler into a `CoefficientTable`, by asking it.

At every step the scheduler is handed one-hot vectors in place of the latent, the model's output and the noise, and
keeps what it keeps of them. Whatever it answers is then a weighted sum of those vectors, and the weights can be read
off: no formula is copied, so the table follows the installed scheduler by construction. What lies outside the
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
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from models.samplers.respacing import InvalidRespacing, adm_table, alpha_bars, respaced
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
from models.samplers.table import CARRY, DATA, HISTORY, LATENT, NOISE, NUM_COLUMNS, CoefficientTable

RESIDUAL_TOLERANCE = 1e-6
_KINDS = 5  # of vectors at a step: latent, output, noise, carried latent, noise of the step before
# "sample" first: the output then is D, and no cancellation between large numbers blurs the weights
_PROBED_AS = ("sample", "v_prediction", "epsilon")


class _OneHotNoise(TorchFunctionMode):
    """Answers every random draw in its scope with one given vector; local to the thread, unlike a patched module."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise = noise

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.randn, torch.randn_like):
            return self.noise.clone()
        return func(*args, **(kwargs or {}))


@functools.lru_cache(maxsize=128)
def _max_steps(name: str, pack_config_json: str, prediction_type: str) -> int:
    pack_config = json.loads(pack_config_json)
    total = int(pack_config["num_train_timesteps"])
    try:
        compile_table(name, pack_config, steps=min(total, 10), prediction_type=prediction_type)
    except NotLinear:
        return 0
    scheduler = build_scheduler(name, pack_config, prediction_type="epsilon")
    if SAMPLERS[name].path is not Path.PACK or prediction_type == FLOW_PREDICTION:
        return total  # its levels are not the pack's timesteps

    def repeats(steps: int) -> bool:
        set_timesteps(scheduler, steps)
        timesteps = scheduler.timesteps
        by_design = isinstance(scheduler, diffusers.PNDMScheduler)  # its second step is taken twice
        return not timesteps.is_floating_point() and len(timesteps.unique()) + by_design < len(timesteps)

    if not repeats(total):  # as of most: a single call, where Python's loops of some take a third of a second
        return total
    return bisect.bisect_left(range(total), True, lo=1, key=repeats) - 1


def max_steps(name: str, pack_config: Mapping[str, Any], prediction_type: str | None = None) -> int:
    """Largest number of steps that sampler `name` can take on the pack's noise schedule; 0 where it can't run on it.

    Multistep solvers leave out the last timestep, and in log-SNR a cosine schedule's noisiest ones too; more steps
    than timesteps would repeat one, and divide by the nothing between them.

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
    """Compile sampler `name` for a pack's noise schedule; the same arguments are compiled once.

    Args:
        name: a key of `SAMPLERS`.
        pack_config: the pack's scheduler configuration (betas and prediction type).
        steps: sampling steps, 1..num_train_timesteps. Second-order samplers evaluate the network about twice a step.
        eta: share of fresh noise, for samplers that take it.
        spacing: one of `SPACINGS`; the sampler's own by default.
        sigmas: a key of `SIGMA_SCHEDULES`; the sampler's own by default.
        respacing: ADM's timestep string for `ddpm` and `ddim`, as `respaced` reads it; `steps` is then not looked at.
        begin: steps left out at the noisy end, for image-to-image.
        overrides: further configuration of the scheduler.
        prediction_type: what the network predicts; the pack's own by default.

    Raises:
        UnknownSampler: no such name.
        NotLinear: the scheduler does something that the table can't express, or has no such option.
        InvalidRespacing: no such timesteps.
    """
    if name not in SAMPLERS:
        raise UnknownSampler(f"no sampler '{name}'; known: {', '.join(SAMPLERS)}")
    predicted = prediction_type or str(pack_config.get("prediction_type", "epsilon"))
    if respacing is not None:
        if name not in ("ddpm", "ddim"):
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
    factors = functools.partial(_data_factors, prediction_type)
    return adm_table(name, json.loads(pack_config_json), timesteps, eta=eta, factors=factors, begin=begin)


@functools.lru_cache(maxsize=512)
def _compile(
    configured: _Configured, pack_config_json: str, steps: int, eta: float, begin: int, prediction_type: str
) -> CoefficientTable:
    pack_config: dict[str, Any] = json.loads(pack_config_json)
    name, spacing, sigmas, overrides = configured
    levels = (_StraightLevels if prediction_type == FLOW_PREDICTION else _Levels)(pack_config)
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
            probe = _Probe(name, scheduler, steps, eta, probed_as, levels, begin)
            if "use_flow_sigmas" in dict(overrides) and float(scheduler.sigmas[-1]) > 0.001:
                raise NotLinear(f"sampler '{name}' ({SAMPLERS[name].scheduler}) stops short of a straight path's end")
            return probe.table(prediction_type)
        except NotImplementedError as error:
            last_refusal = error
        except ValueError as error:
            if "rediction" not in str(error):
                raise
            last_refusal = error
    raise NotLinear(f"sampler '{name}' can't take a network that predicts '{prediction_type}'") from last_refusal


class _Levels:
    """The noise levels that a pack was trained on."""

    def __init__(self, pack_config: Mapping[str, Any]) -> None:
        alpha_bar = np.clip(alpha_bars(pack_config), 1e-12, 1.0)  # schedules of zero terminal signal end at 0
        self.log_ratio = 0.5 * np.log((1 - alpha_bar) / alpha_bar)  # of σ/α, rising with the timestep

    def nearest(self, signal: float, noise: float) -> tuple[float, float, float, float]:
        """(input scale, timestep, α, σ) of the pack's level for the latent signal·x₀ + noise·ε.

        It is the level with the same ratio of noise to signal, or the pack's last where that is further.
        """
        with np.errstate(divide="ignore"):
            wanted = np.clip(np.log(np.float64(noise) / np.float64(signal)), self.log_ratio[0], self.log_ratio[-1])
        timestep = float(np.interp(wanted, self.log_ratio, np.arange(len(self.log_ratio))))
        ratio = float(np.exp(wanted))
        alpha = (ratio**2 + 1) ** -0.5
        return (signal**2 + noise**2) ** -0.5, timestep, alpha, ratio * alpha


class _StraightLevels(_Levels):
    """Those of a pack trained on straight paths: (1−σ)x₀ + σε, told as σ·T."""

    def __init__(self, pack_config: Mapping[str, Any]) -> None:
        self.total = int(pack_config["num_train_timesteps"])

    def nearest(self, signal: float, noise: float) -> tuple[float, float, float, float]:
        sigma = noise / (signal + noise)
        # Not quite 0 at pure noise, where the ratio of σ to α has none to divide by.
        return 1 / (signal + noise), sigma * self.total, max(1 - sigma, 1e-6), sigma


def _data_factors(prediction_type: str, input_scale: float, alpha: float, sigma: float) -> tuple[float, float]:
    """(p, q) of D = p·x + q·output, where the network's input input_scale·x is alpha·x₀ + sigma·ε."""
    match prediction_type:
        case "sample":
            return 0.0, 1.0
        case "epsilon":
            return input_scale / alpha, -sigma / alpha
        case "v_prediction":  # Salimans & Ho 2022: v = αε − σx₀
            return input_scale * alpha, -sigma
        case "flow_prediction":
            return input_scale, -sigma
    raise NotLinear(
        f"prediction type '{prediction_type}' is not served; known: epsilon, v_prediction, sample, {FLOW_PREDICTION}"
    )


def _straight(name: str, pack_config: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a sampler that the pack's levels are those of straight paths."""
    accepted = inspect.signature(getattr(diffusers, SAMPLERS[name].scheduler).__init__).parameters
    if "use_flow_sigmas" not in accepted:
        raise NotLinear(f"sampler '{name}' follows a schedule of betas, and the pack was trained on straight paths")
    return {"use_flow_sigmas": True, "use_dynamic_shifting": False, "flow_shift": float(pack_config.get("shift", 1.0))}


class _Probe:
    """One pass over a scheduler's steps with one-hot vectors.

    Coordinates of the probe space, at step i: a latent, an output, a noise, a carried latent and the noise before it.
    """

    def __init__(
        self, name: str, scheduler: Any, steps: int, eta: float, probed_as: str, levels: _Levels, begin: int
    ) -> None:
        self.name = name
        self.kind = SAMPLERS[name]
        self.probed_as = probed_as
        self.step_arguments = {"eta": eta} if self.kind.takes_eta else {}
        self.scheduler = scheduler
        self.levels = levels
        set_timesteps(self.scheduler, steps)
        self.first = begin * getattr(scheduler, "order", 1)
        if self.first:
            if not hasattr(scheduler, "set_begin_index") and hasattr(scheduler, "sigmas"):
                raise NotLinear(f"sampler '{name}' can't begin in the middle")
            getattr(scheduler, "set_begin_index", lambda index: None)(self.first)
        self.timesteps = scheduler.timesteps[self.first :]
        self.positions = len(self.timesteps)

    def one_hot(self, kind: int, position: int) -> Tensor:
        vector = torch.zeros(1, _KINDS * self.positions, dtype=torch.float64)  # (1, …): DDPM looks at a channel axis
        vector[0, _KINDS * position + kind] = 1.0
        return vector

    def table(self, prediction_type: str) -> CoefficientTable:
        count = self.positions
        weights = np.zeros((count, 2, NUM_COLUMNS))
        timestep = self.timesteps.double().numpy().copy()
        scale, alpha, sigma = np.ones(count), np.ones(count), np.zeros(count)
        probed = np.zeros((count, 2))  # (p, q) of what the scheduler was told the outputs are
        wanted = np.zeros((count, 2))  # (p, q) of what the network's outputs are
        for i in range(count):
            own_scale = self._input_scale(i)
            if self.kind.path is Path.PACK:
                signal, noise = self._signal_and_noise(i, own_scale)
                probed[i] = _data_factors(self.probed_as, own_scale, signal, noise)
                scale[i], alpha[i], sigma[i] = own_scale, signal, noise
            else:
                signal, noise, *probed[i] = self._on_its_path(i)
            if self.kind.path is not Path.PACK or prediction_type == FLOW_PREDICTION:
                scale[i], timestep[i], alpha[i], sigma[i] = self.levels.nearest(signal, noise)
            wanted[i] = _data_factors(prediction_type, scale[i], alpha[i], sigma[i])
            answer, carried = self._step(i)
            weights[i, 0] = self._columns(answer, i, probed)
            if carried is not None:
                weights[i, 1] = self._columns(carried, i, probed)
        return CoefficientTable(
            weights=weights,
            timestep=timestep,
            input_scale=scale,
            data_from_latent=wanted[:, 0].copy(),
            data_from_output=wanted[:, 1].copy(),
            alpha=alpha,
            sigma=sigma,
            initial_scale=float(getattr(self.scheduler, "init_noise_sigma", 1.0)),
        )

    def _input_scale(self, i: int) -> float:
        timestep = self.timesteps[i]
        if not hasattr(self.scheduler, "scale_model_input"):
            return 1.0
        return float(self.scheduler.scale_model_input(torch.ones(1, dtype=torch.float64), timestep)[0])

    def _on_its_path(self, i: int) -> tuple[float, float, float, float]:
        """At step i, latent = signal·x₀ + noise·ε and D = p·latent + q·output: (signal, noise, p, q)."""
        scheduler = self.scheduler
        if self.kind.path is Path.ANGLE:
            alpha, beta = float(scheduler.alphas[self.first + i]), float(scheduler.betas[self.first + i])
            return alpha, beta, alpha, -beta
        sigma = float(scheduler.sigmas[self.first + i])
        if self.kind.path is Path.FLOW:
            return 1.0 - sigma, sigma, 1.0, -sigma
        spread = sigma**2 + scheduler.config.sigma_data**2
        return 1.0, sigma, scheduler.config.sigma_data**2 / spread, -sigma * scheduler.config.sigma_data / spread**0.5

    def _signal_and_noise(self, i: int, input_scale: float) -> tuple[float, float]:
        """(α, σ) of the network's input at step i."""
        scheduler = self.scheduler
        if hasattr(scheduler, "sigmas") and hasattr(scheduler, "step_index"):
            if input_scale != 1.0:  # x is x₀ + ratio·ε there, scaled by 1/√(ratio²+1) on its way into the network
                return input_scale, (1.0 - input_scale**2) ** 0.5
            if not hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
                raise self._gives_nan(i)  # a level between two far ones that float32 has rounded to nothing
            if scheduler.step_index is None:
                scheduler._init_step_index(self.timesteps[i])
            alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[scheduler.step_index].double())
            return float(alpha), float(sigma)
        alpha_bar = float(scheduler.alphas_cumprod[int(self.timesteps[i])])
        return float(np.sqrt(alpha_bar)), float(np.sqrt(1.0 - alpha_bar))

    def _step(self, i: int) -> tuple[Tensor, Tensor | None]:
        kind = self.kind
        if kind.carried and i > 0:
            setattr(self.scheduler, kind.carried, self.one_hot(3, i))
        if kind.noised and i > 0:
            setattr(self.scheduler, kind.noised, self.one_hot(4, i))
        with _OneHotNoise(self.one_hot(2, i)):
            answer = self.scheduler.step(
                self.one_hot(1, i), self.timesteps[i], self.one_hot(0, i), **self.step_arguments
            )
        carried = getattr(self.scheduler, kind.carried).double() if kind.carried else None
        return answer.prev_sample.double(), carried

    def _gives_nan(self, i: int) -> NotLinear:
        return NotLinear(f"sampler '{self.name}' ({self.kind.scheduler}) itself gives NaN at step {i} here")

    def _columns(self, answer: Tensor, i: int, probed: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights of the table's columns in `answer`, outputs rewritten as data predictions."""
        by_step = answer.numpy().reshape(self.positions, _KINDS)
        if not np.isfinite(by_step).all():
            raise self._gives_nan(i)
        row = np.zeros(NUM_COLUMNS)
        explained = np.zeros_like(by_step)
        for back in range(min(HISTORY, i + 1)):
            on_latent, on_output = by_step[i - back, 0], by_step[i - back, 1]
            p, q = probed[i - back]
            row[DATA + back] = on_output / q
            row[LATENT + back] = on_latent - on_output * p / q
            explained[i - back, :2] = on_latent, on_output
        row[NOISE], row[CARRY], row[NOISE + 1] = by_step[i, 2:]
        explained[i, 2:] = by_step[i, 2:]
        residual = float(np.abs(by_step - explained).max())
        if residual > RESIDUAL_TOLERANCE * max(1.0, float(np.abs(by_step).max())):
            raise NotLinear(
                f"sampler '{self.name}' ({self.kind.scheduler}), step {i}: a residual of {residual:.1e} lies outside "
                f"the table's columns ({HISTORY} latents, {HISTORY} predictions, two noises, one carried latent)"
            )
        return row
