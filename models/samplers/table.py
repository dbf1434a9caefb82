"""The coefficient table: a sampler as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

HISTORY = 5
"""Latents and predictions that a step may use. PNDM, which takes its second step twice, needs this many."""

LATENT, DATA, NOISE, CARRY = 0, HISTORY, 2 * HISTORY, 2 * HISTORY + 2
NUM_COLUMNS = 2 * HISTORY + 3
"""Columns of the weights: x[i], x[i-1] …, D[i], D[i-1] …, fresh noise, the previous noise, and a latent that some
solvers carry from step to step."""


COEFFICIENTS = ("input_scale", "timestep", "data_from_latent", "data_from_output", "alpha", "sigma", "signal_kept")
"""Coefficients of an evaluation other than the weights, in the order of `CoefficientTable.numbers`."""


@dataclass(frozen=True, kw_only=True)
class CoefficientTable:
    """A sampler, compiled for one noise schedule and number of steps. M network evaluations, all arrays float64.

    At evaluation i the network sees `input_scale[i]·x` at `timestep[i]`; its output gives the data prediction
    `D = data_from_latent[i]·x + data_from_output[i]·output`; and one matrix product advances the state:

        (x[i+1], carry[i+1]) = weights[i] @ (x[i] … x[i-4], D[i] … D[i-4], noise[i], noise[i-1], carry[i])

    Attributes:
        weights: (M, 2, NUM_COLUMNS); row 0 gives the next latent, row 1 the next carried latent (all zeros for
            solvers that carry none).
        timestep: (M,), the network's timestep input; may be fractional.
        input_scale, data_from_latent, data_from_output: (M,).
        alpha, sigma: (M,), the network's input is alpha·x₀ + sigma·noise, alpha² + sigma² = 1, or alpha + sigma = 1 on
            straight paths.
        initial_scale: standard deviation of the first latent.
        log_variance: (M, 2), least and greatest log variance of an ancestral step, if the network or the classifier
            uses it (Nichol & Dhariwal 2021, eq. 15); else `None`. If set, fresh noise has weight 1 at the steps that
            add any, and must be scaled by its standard deviation beforehand.
    """

    weights: NDArray[np.float64]
    timestep: NDArray[np.float64]
    input_scale: NDArray[np.float64]
    data_from_latent: NDArray[np.float64]
    data_from_output: NDArray[np.float64]
    alpha: NDArray[np.float64]
    sigma: NDArray[np.float64]
    initial_scale: float
    log_variance: NDArray[np.float64] | None = None

    def level(self, position: int) -> tuple[float, float]:
        """(a, s) of the latent a·x₀ + s·noise before evaluation `position`; (1, 0) for the finished latent."""
        if position == len(self):
            return 1.0, 0.0
        scale = self.input_scale[position]
        return float(self.alpha[position] / scale), float(self.sigma[position] / scale)

    def __len__(self) -> int:
        return len(self.timestep)

    @cached_property
    def numbers(self) -> NDArray[np.float32]:
        """(M, len(COEFFICIENTS) + 2 · NUM_COLUMNS), in one array so that a tick can gather its samples' rows."""
        # How much of this latent's x₀ is carried into the next latent; CFG++ corrects it.
        signal_kept = self.weights[:, 0, LATENT] * (self.alpha / self.input_scale)
        named = {name: getattr(self, name) for name in COEFFICIENTS[:-1]} | {"signal_kept": signal_kept}
        coefficients = np.stack([named[name] for name in COEFFICIENTS], axis=1)
        return np.concatenate([coefficients, self.weights.reshape(len(self), -1)], axis=1).astype(np.float32)

    @cached_property
    def used(self) -> tuple[int, ...]:
        """For each evaluation the columns that have a weight, as bits, and bit NUM_COLUMNS if it carries a latent."""
        has_weight = (self.weights != 0).any(axis=1)
        carries = (self.weights[:, 1] != 0).any(axis=1, keepdims=True)
        bits = np.concatenate([has_weight, carries], axis=1) @ (1 << np.arange(NUM_COLUMNS + 1))
        return tuple(bits.tolist())

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """Columns that a sample keeps from one evaluation to the next, beside its latent."""
        used = (self.weights != 0).any(axis=(0, 1))
        kept = [CARRY] if used[CARRY] else []
        for newest, oldest in ((LATENT, DATA), (DATA, NOISE), (NOISE, CARRY)):
            kept += range(newest + 1, newest + 1 + int(np.flatnonzero(used[newest:oldest]).max(initial=0)))
        return tuple(kept)

    @cached_property
    def passed_on(self) -> tuple[int, ...]:
        """Columns that a sample has before an evaluation and keeps, a place further on, after it."""
        return tuple(column - 1 for column in self.kept if column - 1 in self.kept and column != CARRY)

    @cached_property
    def noise_ratio(self) -> NDArray[np.float64]:
        """(M,), σ/α of the network's input; ∞ where a schedule with zero terminal SNR begins."""
        with np.errstate(divide="ignore"):
            return self.sigma / self.alpha

    @cached_property
    def adds_noise(self) -> tuple[bool, ...]:
        """For each evaluation, whether its noise is used in it or in the next."""
        uses = (self.weights != 0).any(axis=1)  # (M, NUM_COLUMNS)
        used: NDArray[np.bool_] = uses[:, NOISE]
        used[:-1] |= uses[1:, NOISE + 1]
        return tuple(used.tolist())
