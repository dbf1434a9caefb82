"""Probes a scheduler's steps with one-hot vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from models.samplers.kinds import FLOW_PREDICTION, SAMPLERS, NotLinear, Path
from models.samplers.levels import Levels, data_factors
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


class _Gap:
    """Stands for a scheduler's number of steps N, so that its T // N is the gap to the next timestep."""

    def __init__(self, gap: int) -> None:
        self.gap = gap

    def __rfloordiv__(self, total: int) -> int:
        return self.gap


class Probe:
    """One pass over a scheduler's steps with one-hot vectors.

    The scheduler's timesteps are set; the pass begins at its step `begin`. If `is_exact`, the network is evaluated at
    the very level of the latent, which some schedulers miss: they round timesteps, or assume that these lie evenly.

    Coordinates of the probe space, at step i: a latent, an output, a noise, a carried latent and the previous noise.
    """

    def __init__(
        self, name: str, scheduler: Any, *, eta: float, probed_as: str, levels: Levels, begin: int, is_exact: bool
    ) -> None:
        self.name = name
        self.kind = SAMPLERS[name]
        self.probed_as = probed_as
        self.step_arguments = {"eta": eta} if self.kind.takes_eta else {}
        self.scheduler = scheduler
        self.levels = levels
        self.is_exact = is_exact
        self.first = begin * getattr(scheduler, "order", 1)
        if hasattr(scheduler, "set_begin_index") and (self.first or is_exact):
            scheduler.set_begin_index(self.first)  # else it looks for the first timestep, which may be there twice
        elif self.first and hasattr(scheduler, "sigmas"):
            raise NotLinear(f"sampler '{name}' can't begin in the middle")
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
            elif self.is_exact:
                timestep[i] = self.levels.nearest(signal, noise)[1]
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
        if kind.even_gaps and self.is_exact:
            self.scheduler.num_inference_steps = _Gap(self._gap(i))
        with _OneHotNoise(self.one_hot(2, i)):
            answer = self.scheduler.step(
                self.one_hot(1, i), self.timesteps[i], self.one_hot(0, i), **self.step_arguments
            )
        carried = getattr(self.scheduler, kind.carried).double() if kind.carried else None
        return answer.prev_sample.double(), carried

    def _gap(self, i: int) -> int:
        """Timesteps from evaluation i to the next; PNDM takes its first step twice."""
        timesteps = [*self.timesteps.tolist(), -1]
        return int(timesteps[i] - timesteps[i + 1] or timesteps[i - 1] - timesteps[i])

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
