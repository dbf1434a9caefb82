"""The noise levels that a pack was trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.samplers.kinds import FLOW_PREDICTION, NotLinear

COSINE_LAMBDA_MIN = -5.1
"""Half log-SNR at which a cosine schedule is cut off, as DPM-Solver's code and diffusers' documentation do."""
_EDM_RANGE = (0.002, 80.0)  # σ (Karras et al. 2022, table 1)


def alpha_bars(pack_config: Mapping[str, Any]) -> NDArray[np.float64]:
    """ᾱ of every training timestep (T,), computed from the definitions in float64; diffusers uses float32."""
    total = int(pack_config["num_train_timesteps"])
    if pack_config.get("trained_betas") is not None:
        betas = np.array(pack_config["trained_betas"], dtype=np.float64)
    else:
        first, last = pack_config.get("beta_start", 0.0001), pack_config.get("beta_end", 0.02)
        match pack_config.get("beta_schedule", "linear"):
            case "linear":
                betas = np.linspace(first, last, total)
            case "scaled_linear":
                betas = np.linspace(first**0.5, last**0.5, total) ** 2
            case "squaredcos_cap_v2":

                def bar(t: float) -> float:
                    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

                betas = np.array([min(1 - bar((i + 1) / total) / bar(i / total), 0.999) for i in range(total)])
            case unknown:
                raise NotLinear(f"beta schedule '{unknown}' is not supported")
    bars = np.cumprod(1 - betas).astype(np.float64)
    if pack_config.get("rescale_betas_zero_snr"):  # Lin et al. 2023, algorithm 1
        roots = np.sqrt(bars)
        bars = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    return bars


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


def levels_of(pack_config: Mapping[str, Any]) -> Levels:
    """The noise levels of a pack, by its prediction type."""
    return (StraightLevels if pack_config.get("prediction_type") == FLOW_PREDICTION else Levels)(pack_config)


def noise_range(pack_config: Mapping[str, Any]) -> tuple[float, float]:
    """Least and greatest σ/α that a sampler on a path of its own passes through: EDM's, as far as the pack has them."""
    least, greatest = _EDM_RANGE
    if pack_config.get("prediction_type") == FLOW_PREDICTION:
        return least, greatest
    log_ratio = Levels(pack_config).log_ratio
    return max(least, math.exp(log_ratio[0])), min(greatest, math.exp(log_ratio[-1]))


def continuous_steps(pack_config: Mapping[str, Any], steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """N steps as DPM-Solver's published code takes them (`NoiseScheduleVP('discrete')`, skip type `time_uniform`).

    Levels with a half log-SNR below -5.1 are cut off, the others spread over the times 1/M, 2/M … 1, and log α is
    interpolated between them.

    Returns:
        Timesteps (N,) of the network, and σ/α (N+1,) of the latents, both falling.
    """
    bars = alpha_bars(pack_config)
    log_alpha = 0.5 * np.log(bars)
    half_log_snr = log_alpha - 0.5 * np.log(1 - bars)
    log_alpha = log_alpha[half_log_snr >= COSINE_LAMBDA_MIN]
    count = len(log_alpha)
    times = np.linspace(1.0, 1 / count, steps + 1)
    alpha = np.exp(np.interp(times, np.arange(1, count + 1) / count, log_alpha))
    return (times[:-1] - 1 / count) * len(bars), np.sqrt(1 - alpha**2) / alpha


def shifted(pack_config: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Set the shift of a scheduler's configuration for a picture of so many tokens, if it depends on their number.

    Flux and Stable Diffusion 3 add more noise to large pictures (Esser et al. 2024, section 5.3.2): μ, the logarithm of
    the shift, rises linearly with the number of tokens.
    """
    if not pack_config.get("use_dynamic_shifting"):
        return pack_config
    config = _SHIFTING_DEFAULTS | pack_config
    least, most = config["base_image_seq_len"], config["max_image_seq_len"]
    share = (tokens - least) / (most - least)
    mu = config["base_shift"] + share * (config["max_shift"] - config["base_shift"])
    return pack_config | {"shift": math.exp(mu)}


_SHIFTING_DEFAULTS = {
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "base_shift": 0.5,
    "max_shift": 1.15,
}  # those of diffusers' flow-matching scheduler
