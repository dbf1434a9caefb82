"""Guidance: how the data predictions of one evaluation and the classifier's gradient become one D, row by row.

The order is that of `combine`: classifier-free, rescale, limit, CFG++ and classifier, limit; profiles differ in where
they limit (models/profiles.py). Limiting before the classifier's term keeps its gradient the same size whatever the
scale did before; limiting after it keeps the first step of a cosine schedule, where σ²/α is about 20,000, inside the
data's range.

A new rule of guidance is a function beside the others, a line in `combine`, and a field of `models.spec.Guidance`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.profiles import Profile
from models.spec import SampleSpec


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What the networks predict for R samples in one evaluation.

    Attributes:
        specs, profiles: R of each: how the samples are guided.
        data: (R,C,H,W), the data prediction of each sample's first row: the conditional one if there is one.
        pairs: P samples that have a second, unconditional row.
        unconditional: (P,C,H,W), the data predictions of those.
        steered: Q samples that the classifier steers.
        gradient: (Q,C,H,W), ∇ₓ log p(y | xₜ, t) at the network's input.
        alpha, sigma: (R,), the network's input is alpha·x₀ + sigma·noise.
        signal_kept: (R,), the share of x₀ in this latent that the sampler takes over into the next.
        variances: (C,H,W) of the step, by sample, if the sampler leaves it to the network or the classifier.
    """

    specs: Sequence[SampleSpec]
    profiles: Sequence[Profile]
    data: Tensor
    pairs: Sequence[int]
    unconditional: Tensor
    steered: Sequence[int]
    gradient: Tensor
    alpha: Tensor
    sigma: Tensor
    signal_kept: Tensor
    variances: Mapping[int, Tensor]


@dataclass(frozen=True, kw_only=True)
class Guided:
    """What becomes of them.

    Attributes:
        data: (R,C,H,W), the D that the sampler goes on with.
        shift: (R,C,H,W), added to the next latent.
        unguided: (R,C,H,W), D without guidance: the unconditional one of pairs.
        unlimited: D before each time that it was limited.
    """

    data: Tensor
    shift: Tensor
    unguided: Tensor
    unlimited: tuple[Tensor, ...]


def combine(predictions: Predictions) -> Guided:
    """Guide every sample as its spec says."""
    free, unguided = _classifier_free_rows(predictions)
    limited = _limited(predictions, free, [profile.clips_before for profile in predictions.profiles])
    steered, shift = _steered(predictions, limited)
    data = _limited(predictions, steered, [profile.clips_after for profile in predictions.profiles])
    shift = shift + _plus_plus_shift(predictions, limited, unguided)
    return Guided(data=data, shift=shift, unguided=unguided, unlimited=(free, steered))


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


def limit_rows(data: Tensor, clip: Tensor, quantiles: Sequence[float | None]) -> Tensor:
    """Keep each row in range: dynamic thresholding if it has a quantile, else clipping if `clip` says so."""
    limited_rows = torch.where(_per_row(clip), data.clamp(-1, 1), data)
    for row, quantile in enumerate(quantiles):
        if quantile is not None:
            limited_rows[row] = thresholded(data[row], quantile)
    return limited_rows


def _per_row(values: Tensor) -> Tensor:
    return values[:, None, None, None]  # (R,1,1,1)


def _classifier_free_rows(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """D after classifier-free guidance and rescale, and the unguided D: both (R,C,H,W)."""
    data, unguided, pairs = predictions.data.clone(), predictions.data.clone(), list(predictions.pairs)
    if pairs:
        guidance = [predictions.specs[row].guidance for row in pairs]
        scale = torch.tensor([one.free_scale for one in guidance], device=data.device)
        unguided[pairs] = predictions.unconditional
        data[pairs] = classifier_free(predictions.data[pairs], predictions.unconditional, scale)
        for row, one in zip(pairs, guidance, strict=True):
            if one.rescale:
                data[row] = rescaled(data[row], predictions.data[row], one.rescale)
    return data, unguided


def _plus_plus_shift(predictions: Predictions, data: Tensor, unguided: Tensor) -> Tensor:
    """What CFG++ adds to the next latents, (R,C,H,W): Chung et al. 2024, in which the noise is the unguided one's.

    A step says where the noise is by x − a·D; with the unguided D there, the next latent has more of D − D_u.
    """
    shift = torch.zeros_like(data)
    for row in predictions.pairs:
        if predictions.specs[row].guidance.plus_plus:
            shift[row] += predictions.signal_kept[row] * (data[row] - unguided[row])
    return shift


def _steered(predictions: Predictions, data: Tensor) -> tuple[Tensor, Tensor]:
    """D with the classifier's term, and what ancestral steps by ADM's rule add to the next latent instead of it."""
    steered, shift = list(predictions.steered), torch.zeros_like(data)
    if not steered:
        return data, shift
    data = data.clone()
    scale = torch.tensor([predictions.specs[row].guidance.classifier_scale for row in steered], device=data.device)
    term = classifier_term(predictions.gradient, predictions.alpha[steered], predictions.sigma[steered], scale)
    for number, row in enumerate(steered):
        if predictions.profiles[row].classifier_at_mean and row in predictions.variances:
            shift[row] += predictions.variances[row] * scale[number] * predictions.gradient[number]
        else:
            data[row] += term[number]
    return data, shift


def _limited(predictions: Predictions, data: Tensor, here: Sequence[bool]) -> Tensor:
    """`data` in range, of those samples that are limited `here`."""
    clip = torch.tensor([spec.clip and now for spec, now in zip(predictions.specs, here, strict=True)])
    quantiles = [spec.dynamic_threshold if now else None for spec, now in zip(predictions.specs, here, strict=True)]
    return limit_rows(data, clip.to(data.device), quantiles)
