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
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from models.samplers.table import CARRY, DATA, HISTORY, LATENT, NOISE, NUM_COLUMNS, CoefficientTable

RESIDUAL_TOLERANCE = 1e-6
COSINE_LAMBDA_MIN = -5.1  # diffusers' documented floor of the half log-SNR for cosine schedules


class UnknownSampler(ValueError):
    """No sampler of that name."""


class NotLinear(ValueError):
    """The scheduler's step is no weighted sum of the table's columns."""


@dataclass(frozen=True, kw_only=True)
class SamplerKind:
    """How a sampler's name maps to a diffusers scheduler.

    Attributes:
        scheduler: class name in diffusers.
        overrides: configuration that differs from the scheduler's own defaults.
        takes_eta: whether `step` has an `eta`.
        carried: the attribute in which a predictor-corrector keeps its corrected latent between steps.
    """

    scheduler: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    takes_eta: bool = False
    carried: str | None = None


SAMPLERS: Mapping[str, SamplerKind] = {
    "ddpm": SamplerKind(scheduler="DDPMScheduler", overrides={"timestep_spacing": "trailing"}),
    "ddim": SamplerKind(scheduler="DDIMScheduler", overrides={"timestep_spacing": "trailing"}, takes_eta=True),
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
}
_FROM_PACK = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
_PROBED_WITHOUT = {"clip_sample": False, "thresholding": False}  # the guidance stack clips D itself
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


def build_scheduler(
    name: str, pack_config: Mapping[str, Any], *, prediction_type: str, overrides: Mapping[str, Any] | None = None
) -> Any:
    """The diffusers scheduler behind `name`, on the pack's noise schedule, without clipping.

    Raises:
        UnknownSampler: no such name.
    """
    if name not in SAMPLERS:
        raise UnknownSampler(f"no sampler '{name}'; known: {', '.join(SAMPLERS)}")
    kind = SAMPLERS[name]
    scheduler_class = getattr(diffusers, kind.scheduler)
    accepted = inspect.signature(scheduler_class.__init__).parameters
    config = {key: pack_config[key] for key in _FROM_PACK if pack_config.get(key) is not None}
    if pack_config.get("beta_schedule") == "squaredcos_cap_v2":
        config["lambda_min_clipped"] = COSINE_LAMBDA_MIN
    config |= {**_PROBED_WITHOUT, **kind.overrides, **(overrides or {}), "prediction_type": prediction_type}
    return scheduler_class(**{key: value for key, value in config.items() if key in accepted})


def _relevant(pack_config: Mapping[str, Any]) -> str:
    return json.dumps({key: pack_config[key] for key in _FROM_PACK if key in pack_config}, sort_keys=True)


def _set_timesteps(scheduler: Any, steps: int) -> None:
    arguments: dict[str, int] = {}
    if steps > scheduler.config.get("original_inference_steps", steps):
        # LCM and TCD pick their steps from an even grid of 50; a longer run needs a finer grid, even as well.
        total = scheduler.config.num_train_timesteps
        arguments["original_inference_steps"] = next(n for n in range(steps, total + 1) if total % n == 0)
    scheduler.set_timesteps(steps, **arguments)
    for name, value in vars(scheduler).items():
        if name.startswith("sigmas") and isinstance(value, Tensor):
            # In float32 the ancestral samplers' σ_to² − σ_up² cancels to below zero between far sigmas.
            setattr(scheduler, name, value.double())


@functools.lru_cache(maxsize=128)
def _max_steps(name: str, pack_config_json: str) -> int:
    pack_config = json.loads(pack_config_json)
    total = int(pack_config["num_train_timesteps"])
    scheduler = build_scheduler(name, pack_config, prediction_type="epsilon")

    def repeats(steps: int) -> bool:
        _set_timesteps(scheduler, steps)
        timesteps = scheduler.timesteps
        return not timesteps.is_floating_point() and len(timesteps.unique()) < len(timesteps)

    return bisect.bisect_left(range(total + 1), True, lo=1, key=repeats) - 1


def max_steps(name: str, pack_config: Mapping[str, Any]) -> int:
    """Largest number of steps that sampler `name` can take on the pack's noise schedule.

    Multistep solvers leave out the last timestep, and in log-SNR a cosine schedule's noisiest ones too; more steps
    than timesteps would repeat one, and divide by the nothing between them.

    Raises:
        UnknownSampler: no such name.
    """
    return _max_steps(name, _relevant(pack_config))


def compile_table(
    name: str, pack_config: Mapping[str, Any], *, steps: int, eta: float = 0.0, prediction_type: str | None = None
) -> CoefficientTable:
    """Compile sampler `name` for a pack's noise schedule; the same arguments are compiled once.

    Args:
        name: a key of `SAMPLERS`.
        pack_config: the pack's scheduler configuration (betas and prediction type).
        steps: sampling steps, 1..num_train_timesteps. Second-order samplers evaluate the network about twice a step.
        eta: share of fresh noise, for samplers that take it.
        prediction_type: what the network predicts; the pack's own by default.

    Raises:
        UnknownSampler: no such name.
        NotLinear: the scheduler does something that the table can't express.
    """
    if name not in SAMPLERS:
        raise UnknownSampler(f"no sampler '{name}'; known: {', '.join(SAMPLERS)}")
    predicted = prediction_type or str(pack_config.get("prediction_type", "epsilon"))
    return _compile(name, _relevant(pack_config), steps, eta, predicted)


@functools.lru_cache(maxsize=512)
def _compile(name: str, pack_config_json: str, steps: int, eta: float, prediction_type: str) -> CoefficientTable:
    pack_config: dict[str, Any] = json.loads(pack_config_json)
    last_refusal: Exception | None = None
    for probed_as in _PROBED_AS:
        try:
            return _Probe(name, pack_config, steps, eta, probed_as).table(prediction_type)
        except NotImplementedError as error:
            last_refusal = error
        except ValueError as error:
            if "prediction_type" not in str(error):
                raise
            last_refusal = error
    raise NotLinear(f"sampler '{name}' accepts none of {', '.join(_PROBED_AS)}") from last_refusal


def _data_factors(prediction_type: str, input_scale: float, alpha: float, sigma: float) -> tuple[float, float]:
    """(p, q) of D = p·x + q·output, where the network's input input_scale·x is alpha·x₀ + sigma·ε."""
    match prediction_type:
        case "sample":
            return 0.0, 1.0
        case "epsilon":
            return input_scale / alpha, -sigma / alpha
        case "v_prediction":  # Salimans & Ho 2022: v = αε − σx₀
            return input_scale * alpha, -sigma
    raise NotLinear(f"prediction type '{prediction_type}' is not served; known: epsilon, v_prediction, sample")


class _Probe:
    """One pass over a scheduler's steps with one-hot vectors.

    Coordinates of the probe space, at step i: a latent, an output, a noise and a carried latent of its own.
    """

    def __init__(self, name: str, pack_config: Mapping[str, Any], steps: int, eta: float, probed_as: str) -> None:
        self.name = name
        self.kind = SAMPLERS[name]
        self.probed_as = probed_as
        self.step_arguments = {"eta": eta} if self.kind.takes_eta else {}
        self.scheduler = build_scheduler(name, pack_config, prediction_type=probed_as)
        _set_timesteps(self.scheduler, steps)
        self.positions = len(self.scheduler.timesteps)

    def one_hot(self, kind: int, position: int) -> Tensor:
        vector = torch.zeros(1, 4 * self.positions, dtype=torch.float64)  # (1, …): DDPM looks at a channel axis
        vector[0, 4 * position + kind] = 1.0
        return vector

    def table(self, prediction_type: str) -> CoefficientTable:
        count = self.positions
        timesteps = self.scheduler.timesteps
        weights = np.zeros((count, 2, NUM_COLUMNS))
        scale, alpha, sigma = np.ones(count), np.ones(count), np.zeros(count)
        probed = np.zeros((count, 2))  # (p, q) of what the scheduler was told the outputs are
        wanted = np.zeros((count, 2))  # (p, q) of what the network's outputs are
        for i in range(count):
            scale[i] = self._input_scale(i)
            alpha[i], sigma[i] = self._signal_and_noise(i, scale[i])
            probed[i] = _data_factors(self.probed_as, scale[i], alpha[i], sigma[i])
            wanted[i] = _data_factors(prediction_type, scale[i], alpha[i], sigma[i])
            answer, carried = self._step(i)
            weights[i, 0] = self._columns(answer, i, probed)
            if carried is not None:
                weights[i, 1] = self._columns(carried, i, probed)
        return CoefficientTable(
            weights=weights,
            timestep=timesteps.double().numpy().copy(),
            input_scale=scale,
            data_from_latent=wanted[:, 0].copy(),
            data_from_output=wanted[:, 1].copy(),
            alpha=alpha,
            sigma=sigma,
            initial_scale=float(self.scheduler.init_noise_sigma),
        )

    def _input_scale(self, i: int) -> float:
        timestep = self.scheduler.timesteps[i]
        return float(self.scheduler.scale_model_input(torch.ones(1, dtype=torch.float64), timestep)[0])

    def _signal_and_noise(self, i: int, input_scale: float) -> tuple[float, float]:
        """(α, σ) of the network's input at step i."""
        scheduler = self.scheduler
        if hasattr(scheduler, "sigmas") and hasattr(scheduler, "step_index"):
            if scheduler.step_index is None:
                scheduler._init_step_index(scheduler.timesteps[i])
            between = hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order
            sigmas = scheduler.sigmas_interpol if between else scheduler.sigmas
            ratio = sigmas[scheduler.step_index].double()
            if input_scale == 1.0:
                alpha, sigma = scheduler._sigma_to_alpha_sigma_t(ratio)
                return float(alpha), float(sigma)
            # x is x₀ + ratio·ε there, scaled by 1/√(ratio²+1) on its way into the network; not read off
            # input_scale, whose float32 rounding would swamp a small sigma
            return float((ratio**2 + 1) ** -0.5), float(ratio * (ratio**2 + 1) ** -0.5)
        alpha_bar = float(scheduler.alphas_cumprod[int(scheduler.timesteps[i])])
        return float(np.sqrt(alpha_bar)), float(np.sqrt(1.0 - alpha_bar))

    def _step(self, i: int) -> tuple[Tensor, Tensor | None]:
        carried = self.kind.carried
        if carried and i > 0:
            setattr(self.scheduler, carried, self.one_hot(3, i))
        with _OneHotNoise(self.one_hot(2, i)):
            answer = self.scheduler.step(
                self.one_hot(1, i), self.scheduler.timesteps[i], self.one_hot(0, i), **self.step_arguments
            )
        return answer.prev_sample.double(), getattr(self.scheduler, carried).double() if carried else None

    def _columns(self, answer: Tensor, i: int, probed: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights of the table's columns in `answer`, outputs rewritten as data predictions."""
        by_step = answer.numpy().reshape(self.positions, 4)
        if not np.isfinite(by_step).all():
            raise NotLinear(f"sampler '{self.name}' ({self.kind.scheduler}) itself gives NaN at step {i} here")
        row = np.zeros(NUM_COLUMNS)
        explained = np.zeros_like(by_step)
        for back in range(min(HISTORY, i + 1)):
            on_latent, on_output = by_step[i - back, 0], by_step[i - back, 1]
            p, q = probed[i - back]
            row[DATA + back] = on_output / q
            row[LATENT + back] = on_latent - on_output * p / q
            explained[i - back, :2] = on_latent, on_output
        row[NOISE], row[CARRY] = by_step[i, 2], by_step[i, 3]
        explained[i, 2:] = by_step[i, 2:]
        residual = float(np.abs(by_step - explained).max())
        if residual > RESIDUAL_TOLERANCE * max(1.0, float(np.abs(by_step).max())):
            raise NotLinear(
                f"sampler '{self.name}' ({self.kind.scheduler}), step {i}: a residual of {residual:.1e} lies outside "
                f"the table's columns ({HISTORY} latents, {HISTORY} predictions, fresh noise, one carried latent)"
            )
        return row
