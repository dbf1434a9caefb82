"""What is measured: recognition and Fréchet distance."""

from __future__ import annotations

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from models.evaluation.judge import Judge


@torch.inference_mode()
def recognised(judge: Judge, pictures: Tensor, labels: Tensor) -> float:
    """Share of `uint8` pictures (N,1,H,W) whose class the judge names as in `labels` (N,)."""
    return float((judge(pictures).argmax(1) == labels).float().mean())


@torch.inference_mode()
def frechet_distance(judge: Judge, pictures: Tensor, reference: Tensor) -> float:
    """‖μ₁−μ₂‖² + Tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) in the judge's features (Heusel et al. 2017), of two sets (N,1,H,W)."""
    first, second = (judge.features(each).double().numpy() for each in (pictures, reference))
    cross = linalg.sqrtm(np.cov(first, rowvar=False) @ np.cov(second, rowvar=False))
    difference = first.mean(0) - second.mean(0)
    spread = np.trace(np.cov(first, rowvar=False) + np.cov(second, rowvar=False) - 2 * cross.real)
    return float(difference @ difference + spread)
