"""The one update that all samplers share."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.samplers.table import CARRY, DATA, HISTORY, LATENT, NOISE

State = dict[int, Tensor]
"""The columns of `CoefficientTable.weights` that are known before an evaluation, by number: those whose weights are all
zero from here on may be missing."""
_HISTORY = (*range(LATENT + 1, LATENT + HISTORY), *range(DATA + 1, DATA + HISTORY), NOISE + 1)


def advance(state: Mapping[int, Tensor], data: Tensor, noise: Tensor | None, weights: Tensor) -> State:
    """Advance every row by one evaluation.

    The sum is written as separate multiplications and additions because these are bitwise the same for a row in any
    batch; a matrix product's kernel depends on the batch size.

    Args:
        state: (R, C, H, W) each.
        data: (R, C, H, W), this evaluation's guided data prediction.
        noise: (R, C, H, W); rows that add none may hold zeros. `None` if no row adds any.
        weights: (R, 2, NUM_COLUMNS), or (R, 1, NUM_COLUMNS) if no row has a latent to carry.

    Returns:
        The next state.
    """
    columns = {**state, DATA: data} if noise is None else {**state, DATA: data, NOISE: noise}
    latent, *carried = (_weighted(columns, row) for row in weights[..., None, None, None].unbind(1))
    moved = {column: columns[column - 1] for column in _HISTORY if column - 1 in columns}
    return {**moved, LATENT: latent} | ({CARRY: carried[0]} if carried else {})


def _weighted(columns: Mapping[int, Tensor], weights: Tensor) -> Tensor:
    """The sum of the columns, in their order; weights (R,NUM_COLUMNS,1,1,1)."""
    of_column = weights.unbind(1)
    total = of_column[LATENT] * columns[LATENT]
    for column in sorted(columns.keys() - {LATENT}):
        total = total + of_column[column] * columns[column]
    return total
