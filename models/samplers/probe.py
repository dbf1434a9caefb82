"""Probes a scheduler's steps with one-hot vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from models.samplers.respacing import alpha_bars
from models.samplers.schedulers import FLOW_PREDICTION, SAMPLERS, NotLinear, Path, set_timesteps
from models.samplers.table import CARRY, DATA, HISTORY, LATENT, NOISE, NUM_COLUMNS, CoefficientTable

RESIDUAL_TOLERANCE = 1e-6
_KINDS = 5  # kinds of vectors at a step: latent, output, noise, carried latent, noise of the previous step


class _OneHotNoise(TorchFunctionMode):
    """Replaces every random draw in its scope by a given vector; local to the thread, unlike patching a module."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise = noise

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.randn, torch.randn_like):
            return self.noise.clone()
        return func(*args, **(kwargs or {}))


class Levels:
    """The noise levels that a pack was trained on."""

    def __init__(self, pack_config: Mapping[str, Any]) -> None:
        alpha_bar = np.clip(alpha_bars(pack_config), 1e-12, 1.0)  # schedules with zero terminal SNR end at 0
        self.log_ratio = 0.5 * np.log((1 - alpha_bar) / alpha_bar)  # log σ/α, rising with the timestep

    def nearest(self, signal: float, noise: float) -> tuple[float, float, float, float]:
        """(input scale, timestep, α, σ) of the pack's level for the latent signal·x₀ + noise·ε.

        The level has the same noise-to-signal ratio, clipped to the pack's range.
        """
        with np.errstate(divide="ignore"):
            wanted = np.clip(np.log(np.float64(noise) / np.float64(signal)), self.log_ratio[0], self.log_ratio[-1])
        timestep = float(np.interp(wanted, self.log_ratio, np.arange(len(self.log_ratio))))
        ratio = float(np.exp(wanted))
        alpha = (ratio**2 + 1) ** -0.5
        return (signal**2 + noise**2) ** -0.5, timestep, alpha, ratio * alpha


class StraightLevels(Levels):
    """The noise levels of a pack trained on straight paths, (1−σ)x₀ + σε at timestep σ·T."""

    def __init__(self, pack_config: Mapping[str, Any]) -> None:
        self.total = int(pack_config["num_train_timesteps"])

    def nearest(self, signal: float, noise: float) -> tuple[float, float, float, float]:
        sigma = noise / (signal + noise)
        # α is kept above 0 at pure noise, because σ is divided by it.
        return 1 / (signal + noise), sigma * self.total, max(1 - sigma, 1e-6), sigma


def data_factors(prediction_type: str, input_scale: float, alpha: float, sigma: float) -> tuple[float, float]:
    """(p, q) of D = p·x + q·output, if the network's input input_scale·x is alpha·x₀ + sigma·ε."""
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
        f"prediction type '{prediction_type}' is not supported; known: epsilon, v_prediction, sample, {FLOW_PREDICTION}"
    )


class Probe:
    """One pass over a scheduler's steps with one-hot vectors.

    Coordinates of the probe space, at step i: a latent, an output, a noise, a carried latent and the previous noise.
    """

    def __init__(
        self, name: str, scheduler: Any, steps: int, eta: float, probed_as: str, levels: Levels, begin: int
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
        probed = np.zeros((count, 2))  # (p, q) for the prediction type that the scheduler is configured with
        wanted = np.zeros((count, 2))  # (p, q) for the network's prediction type
        for i in range(count):
            own_scale = self._input_scale(i)
            if self.kind.path is Path.PACK:
                signal, noise = self._signal_and_noise(i, own_scale)
                probed[i] = data_factors(self.probed_as, own_scale, signal, noise)
                scale[i], alpha[i], sigma[i] = own_scale, signal, noise
            else:
                signal, noise, *probed[i] = self._on_its_path(i)
            if self.kind.path is not Path.PACK or prediction_type == FLOW_PREDICTION:
                scale[i], timestep[i], alpha[i], sigma[i] = self.levels.nearest(signal, noise)
            wanted[i] = data_factors(prediction_type, scale[i], alpha[i], sigma[i])
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
            if input_scale != 1.0:  # the latent is x₀ + ratio·ε, and the network's input is it scaled by 1/√(ratio²+1)
                return input_scale, (1.0 - input_scale**2) ** 0.5
            if not hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
                raise self._gives_nan(i)  # a level between two distant ones that float32 has rounded to zero
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
        """Weights of the table's columns in `answer`, with outputs rewritten as data predictions."""
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
