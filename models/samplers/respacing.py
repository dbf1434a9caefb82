"""ADM's timesteps and two samplers, in float64 (Dhariwal & Nichol 2021, based on Nichol & Dhariwal 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.samplers.levels import alpha_bars
from models.samplers.table import DATA, LATENT, NOISE, NUM_COLUMNS, CoefficientTable

FAST27 = "10,10,3,2,2"
"""GLIDE's `fast27`: sections of 200 timesteps, the last of which ends two timesteps early."""


class InvalidRespacing(ValueError):
    """The respacing string is invalid; the message says what would be valid."""


def respaced(text: str, total: int) -> list[int]:
    """The timesteps, ascending, that a respacing string chooses out of `total`.

    "250" chooses 250 from one section; "10,15,20" chooses 10, 15 and 20 from three equal sections, ends included;
    "ddim25" chooses 25 with a constant stride from 0; "fast27" is GLIDE's.

    Raises:
        InvalidRespacing: the string is invalid, or chooses more timesteps than there are.
    """
    if text == "fast27":
        return [timestep - 2 if timestep == total - 1 else timestep for timestep in respaced(FAST27, total)]
    if text.startswith("ddim") and text[4:].isdecimal():
        count = int(text[4:])
        for every in range(1, total):
            if len(range(0, total, every)) == count:
                return list(range(0, total, every))
        possible = sorted({len(range(0, total, every)) for every in range(1, total)}, key=lambda n: abs(n - count))
        raise InvalidRespacing(f"no whole stride gives {count} of {total} timesteps; nearest: ddim{possible[0]}")
    if not all(part.isdecimal() and int(part) for part in text.split(",")):
        raise InvalidRespacing(f"'{text}' is not a respacing; write '250', '10,15,20', 'ddim25' or 'fast27'")
    counts = [int(part) for part in text.split(",")]
    chosen: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        size = total // len(counts) + (section < total % len(counts))
        if size < count:
            raise InvalidRespacing(f"can't choose {count} timesteps from a section of {size}")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        at = 0.0
        for _ in range(count):
            chosen.append(start + round(at))
            at += stride
        start += size
    return chosen


def adm_table(
    name: str,
    pack_config: Mapping[str, Any],
    timesteps: Sequence[int],
    *,
    eta: float,
    factors: Any,
    begin: int = 0,
) -> CoefficientTable:
    """ADM's `ddpm` or `ddim` over the given timesteps (ascending).

    Args:
        name: "ddpm" or "ddim".
        pack_config: the pack's scheduler configuration.
        timesteps: of the training schedule.
        eta: `ddim`'s share of fresh noise.
        factors: (input_scale, alpha, sigma) → (p, q) of D = p·x + q·output.
        begin: evaluations skipped at the noisy end.
    """
    bars = alpha_bars(pack_config)[list(timesteps)]
    before = np.append(1.0, bars[:-1])
    betas = 1 - bars / before
    count = len(bars)
    posterior = betas * (1 - before) / (1 - bars)
    least = np.log(np.append(posterior[1], posterior[1:]) if count > 1 else betas)
    weights = np.zeros((count, 2, NUM_COLUMNS))
    inner = (np.arange(count) > 0).astype(np.float64)  # the last step adds no noise
    if name == "ddpm":
        weights[:, 0, DATA] = betas * np.sqrt(before) / (1 - bars)
        weights[:, 0, LATENT] = (1 - before) * np.sqrt(1 - betas) / (1 - bars)
        weights[:, 0, NOISE] = inner
    else:
        deviation = eta * np.sqrt((1 - before) / (1 - bars)) * np.sqrt(1 - bars / before)
        onto_noise = np.sqrt(1 - before - deviation**2) / np.sqrt(1 - bars)
        weights[:, 0, DATA] = np.sqrt(before) - onto_noise * np.sqrt(bars)
        weights[:, 0, LATENT] = onto_noise
        weights[:, 0, NOISE] = deviation * inner
    alpha, sigma = np.sqrt(bars), np.sqrt(1 - bars)
    data = np.array([factors(1.0, a, s) for a, s in zip(alpha, sigma, strict=True)])
    falling = slice(None, None, -1)

    def column(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values[falling][begin:].copy()

    return CoefficientTable(
        weights=column(weights),
        timestep=column(np.array(timesteps, dtype=np.float64)),
        input_scale=column(np.ones(count)),
        data_from_latent=column(data[:, 0]),
        data_from_output=column(data[:, 1]),
        alpha=column(alpha),
        sigma=column(sigma),
        initial_scale=1.0,
        log_variance=column(np.stack([least, np.log(betas)], axis=1)) if name == "ddpm" else None,
    )
