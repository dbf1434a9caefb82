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


def sharpness(logits: Tensor) -> float:
    """Exp of the mean KL(p(y|x) ‖ p(y)): 1 to the number of classes (the inception score of Salimans et al. 2016).

    Args:
        logits: of a classifier (N, classes).
    """
    log_each = torch.log_softmax(logits.double(), -1)
    log_all = log_each.exp().mean(0).clamp(min=1e-12).log()
    return float((log_each.exp() * (log_each - log_all)).sum(-1).mean().exp())


def precision_and_recall(drawn: Tensor, real: Tensor, *, neighbours: int = 3) -> tuple[float, float]:
    """Share of drawn pictures near real ones, and of real pictures near drawn ones (Kynkäänniemi et al. 2019).

    A picture is near a set if it is no farther from one of the set's pictures than that one's k-th nearest neighbour
    in the set. Features (N,F) and (M,F); of the larger set as many are used as the smaller has.
    """
    count = min(len(drawn), len(real))
    chosen = torch.Generator().manual_seed(0)
    drawn, real = (rows[torch.randperm(len(rows), generator=chosen)[:count]].double() for rows in (drawn, real))
    return _share_within(drawn, real, neighbours), _share_within(real, drawn, neighbours)


def _share_within(points: Tensor, manifold: Tensor, neighbours: int) -> float:
    """The share of points (N,F) that lie in the union of balls around the manifold's points (M,F)."""
    nearest = min(neighbours, len(manifold) - 1) + 1  # the nearest of all is the point itself
    radii = torch.cat([torch.cdist(part, manifold).kthvalue(nearest).values for part in manifold.split(1024)])
    inside = [(torch.cdist(part, manifold) <= radii).any(1) for part in points.split(1024)]
    return float(torch.cat(inside).double().mean())
