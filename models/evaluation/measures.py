"""Measures: recognition and Fréchet distance."""

from __future__ import annotations

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from models.classifiers import Judge


@torch.inference_mode()
def recognised(judge: Judge, pictures: Tensor, labels: Tensor) -> float:
    """Share of `uint8` pictures (N,C,H,W) that the judge classifies as in `labels` (N,)."""
    return float((judge(pictures).argmax(1) == labels).float().mean())


def frechet_distance(
    first_mean: Tensor, first_covariance: Tensor, second_mean: Tensor, second_covariance: Tensor
) -> float:
    """‖μ₁−μ₂‖² + Tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) (Heusel et al. 2017). Means (F,), covariances (F,F)."""
    root = linalg.sqrtm((first_covariance @ second_covariance).numpy()).real
    difference = first_mean - second_mean
    spread = first_covariance.trace() + second_covariance.trace() - 2 * np.trace(root)
    return float(difference @ difference + spread)
