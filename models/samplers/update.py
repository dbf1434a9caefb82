"""The one update that all samplers share."""

from __future__ import annotations

import torch
from torch import Tensor

from models.samplers.table import CARRY, DATA, HISTORY, LATENT, NOISE


def advance(state: Tensor, data: Tensor, noise: Tensor, weights: Tensor) -> Tensor:
    """Advance every row by one evaluation.

    The sum is written as separate multiplications and additions because these are bitwise the same for a row in any
    batch; a matrix product's kernel depends on the batch size.

    Args:
        state: (R, NUM_COLUMNS, C, H, W), columns as in `CoefficientTable`; the data and noise of this evaluation
            are not in it yet.
        data: (R, C, H, W), this evaluation's guided data prediction.
        noise: (R, C, H, W); rows that add none may hold zeros.
        weights: (R, 2, NUM_COLUMNS).

    Returns:
        The next state, shape of `state`.
    """
    columns = list(state.unbind(1))
    columns[DATA : DATA + HISTORY] = [data, *columns[DATA : DATA + HISTORY - 1]]
    columns[NOISE : NOISE + 2] = [noise, columns[NOISE]]
    factors = weights[..., None, None, None].unbind(2)  # NUM_COLUMNS × (R,2,1,1,1)
    latent, carry = (factors[0] * columns[0][:, None]).unbind(1)
    for factor, column in zip(factors[1:], columns[1:], strict=True):
        latent = latent + factor[:, 0] * column
        carry = carry + factor[:, 1] * column
    columns[LATENT : LATENT + HISTORY] = [latent, *columns[LATENT : LATENT + HISTORY - 1]]
    columns[CARRY] = carry
    return torch.stack(columns, dim=1)
