"""Guidance: how the data predictions of one evaluation and the classifier's gradient become one D, row by row.

Order (the `cynosure` profile; others differ in where they clip, models/profiles.py): classifier-free, rescale, clip,
classifier, clip. Clipping before the classifier's term keeps its gradient the same size whatever the scale did before;
clipping after it keeps the first step of a cosine schedule, where σ²/α is about 20,000, inside the data's range.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _per_row(values: Tensor) -> Tensor:
    return values[:, None, None, None]  # (R,1,1,1)


def classifier_free(conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
    """D_u + w·(D_c − D_u): Ho & Salimans 2022, w in Stable Diffusion's convention. (R,C,H,W), scale (R,)."""
    return unconditional + _per_row(scale) * (conditional - unconditional)


def rescaled(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """One row's guided prediction with its deviation pulled to the conditional one's: Lin et al. 2023, eq. 15-16.

    Both (C,H,W); `share` is φ in 0..1.
    """
    return guided * (share * conditional.std() / guided.std() + (1 - share))


def thresholded(data: Tensor, quantile: float) -> Tensor:
    """Dynamic thresholding of one row (C,H,W): Saharia et al. 2022, section 2.3. `quantile` in 0..1."""
    limit = torch.quantile(data.abs().flatten(), quantile).clamp(min=1.0)
    return data.clamp(-limit, limit) / limit


def classifier_term(gradient: Tensor, alpha: Tensor, sigma: Tensor, scale: Tensor) -> Tensor:
    """(σ²/α)·s·∇ₓ log p(y | xₜ, t), added to D: Dhariwal & Nichol 2021, Algorithm 2, in terms of D.

    `gradient` (R,C,H,W) at the network's input α·x₀ + σ·ε; the rest (R,).
    """
    return _per_row(sigma**2 / alpha * scale) * gradient


def limit_rows(data: Tensor, clip: Tensor, quantiles: list[float | None]) -> Tensor:
    """Keep each row in range: dynamic thresholding where it has a quantile, else clipping where `clip` says so."""
    limited_rows = torch.where(_per_row(clip), data.clamp(-1, 1), data)
    for row, quantile in enumerate(quantiles):
        if quantile is not None:
            limited_rows[row] = thresholded(data[row], quantile)
    return limited_rows
