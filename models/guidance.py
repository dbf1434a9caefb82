"""Guidance: combines the data predictions of one evaluation and the classifier's gradient into one D, row by row.

`combine` applies the rules in order: classifier-free, rescale, limit, CFG++ and classifier, limit; profiles differ in
where they limit (models/profiles.py). Limiting before the classifier's term keeps the size of its gradient independent
of the classifier-free scale; limiting after it keeps the first step of a cosine schedule, where σ²/α is about 20,000,
within the data's range.

To add a rule of guidance, add a function, a line in `combine`, and a field of `models.spec.Guidance`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from models.batching import constant, picked, replaced
from models.profiles import Profile
from models.spec import SampleSpec


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The networks' predictions for R samples in one evaluation.

    Attributes:
        specs, profiles: R of each: how the samples are guided.
        data: (R,C,H,W), the data prediction of each sample's first row: the conditional one if there is one.
        x: (R,C,H,W), the latents.
        data_from_latent: (R or more,), what they are multiplied by in `data`; the rest of that is the network's.
        pairs: indices of the P samples that have a second, unconditional row.
        unconditional: (P,C,H,W), the data predictions of those rows.
        steered: indices of the Q samples that the classifier steers.
        gradient: (Q,C,H,W), ∇ₓ log p(y | xₜ, t) at the network's input.
        alpha, sigma: (R or more,), the network's input is alpha·x₀ + sigma·noise.
        signal_kept: (R or more,), how much of this latent's x₀ the sampler carries into the next latent.
        variances: (C,H,W) of the step, by sample, if its sampler leaves the variance to the network or classifier.
    """

    specs: Sequence[SampleSpec]
    profiles: Sequence[Profile]
    data: Tensor
    x: Tensor
    data_from_latent: Tensor
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
    """The guided predictions.

    Attributes:
        data: (R,C,H,W), the D that the sampler uses.
        shift: (R,C,H,W), added to the next latent; `None` if nothing is.
        unlimited: D before each limit was applied.
    """

    data: Tensor
    shift: Tensor | None
    unlimited: tuple[Tensor, ...]


def combine(predictions: Predictions) -> Guided:
    """Guide every sample according to its spec."""
    free = _classifier_free_rows(predictions)
    limited = _limited(predictions, free, [profile.clips_before for profile in predictions.profiles])
    steered, at_mean = _steered(predictions, limited)
    data = _limited(predictions, steered, [profile.clips_after for profile in predictions.profiles])
    plus_plus, kept_noise = (
        _plus_plus_shift(predictions, limited),
        _kept_noise_shift(predictions, steered, data),
    )
    shifts = [shift for shift in (at_mean, plus_plus, kept_noise) if shift is not None]
    return Guided(data=data, shift=reduce(torch.add, shifts) if shifts else None, unlimited=(free, steered))


def classifier_free(conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
    """D_u + w·(D_c − D_u): Ho & Salimans 2022, with w in Stable Diffusion's convention. (R,C,H,W), scale (R,)."""
    return unconditional + _per_row(scale) * (conditional - unconditional)


def rescaled(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """Pull a guided row's standard deviation towards the conditional one's: Lin et al. 2023, eq. 15-16.

    Both rows are (C,H,W); `share` is φ in 0..1.
    """
    return guided * (share * conditional.std() / guided.std() + (1 - share))


def thresholded(data: Tensor, quantile: float) -> Tensor:
    """Dynamic thresholding of one row (C,H,W): Saharia et al. 2022, section 2.3. `quantile` in 0..1."""
    limit = torch.quantile(data.abs().flatten(), quantile).clamp(min=1.0)
    return data.clamp(-limit, limit) / limit


def classifier_term(gradient: Tensor, alpha: Tensor, sigma: Tensor, scale: Tensor) -> Tensor:
    """The term (σ²/α)·s·∇ₓ log p(y | xₜ, t) that is added to D: Dhariwal & Nichol 2021, Algorithm 2, in terms of D.

    `gradient` (R,C,H,W) is at the network's input α·x₀ + σ·ε; the others are (R,).
    """
    return _per_row(sigma**2 / alpha * scale) * gradient


def limit_rows(data: Tensor, clip: Sequence[bool], quantiles: Sequence[float | None]) -> Tensor:
    """Limit each row: by dynamic thresholding if it has a quantile, else by clipping if `clip` is set."""
    clipped = [row for row, is_clipped in enumerate(clip) if is_clipped]
    limited_rows = replaced(data, clipped, picked(data, clipped).clamp(-1, 1))
    for row, quantile in enumerate(quantiles):
        if quantile is not None:
            limited_rows[row] = thresholded(data[row], quantile)
    return limited_rows


def _per_row(values: Tensor) -> Tensor:
    return values[:, None, None, None]  # (R,1,1,1)


def _classifier_free_rows(predictions: Predictions) -> Tensor:
    """D (R,C,H,W) with classifier-free guidance and rescale."""
    pairs = predictions.pairs
    if not pairs:
        return predictions.data
    guidance = [predictions.specs[row].guidance for row in pairs]
    scale = constant(tuple(each.free_scale or 0.0 for each in guidance), predictions.data.device)
    conditional = picked(predictions.data, pairs)
    guided = classifier_free(conditional, predictions.unconditional, scale)
    for number, (row, each) in enumerate(zip(pairs, guidance, strict=True)):
        if each.rescale:
            kept: Tensor | float = 0.0
            if predictions.profiles[row].rescales_output:
                kept = predictions.data_from_latent[row] * predictions.x[row]
            guided[number] = kept + rescaled(guided[number] - kept, conditional[number] - kept, each.rescale)
    return replaced(predictions.data, pairs, guided)


def _unguided(predictions: Predictions) -> Tensor:
    """D (R,C,H,W) without guidance: of pairs, the unconditional one."""
    return replaced(predictions.data, predictions.pairs, predictions.unconditional)


def _plus_plus_shift(predictions: Predictions, data: Tensor) -> Tensor | None:
    """The term that CFG++ adds to the next latents, (R,C,H,W), if any sample uses it: Chung et al. 2024.

    A step estimates the noise from x − a·D. CFG++ uses the unguided D_u there, which adds a share of D − D_u to the
    next latent.
    """
    plus_plus = [row for row in predictions.pairs if predictions.specs[row].guidance.plus_plus]
    return _kept_difference(predictions, plus_plus, data, _unguided(predictions)) if plus_plus else None


def _kept_noise_shift(predictions: Predictions, unlimited: Tensor, data: Tensor) -> Tensor | None:
    """What the next latents gain if their noise is estimated from D before it was limited, (R,C,H,W); see CFG++."""
    samples = enumerate(zip(predictions.specs, predictions.profiles, strict=True))
    keep = [row for row, (spec, profile) in samples if spec.sampler in profile.keeps_noise]
    return _kept_difference(predictions, keep, data, unlimited)


def _kept_difference(predictions: Predictions, rows: Sequence[int], data: Tensor, other: Tensor) -> Tensor | None:
    """What the sampler carries of `data` − `other` into the next latents, in some of the rows; 0 in the others."""
    if not rows:
        return None
    shift = torch.zeros_like(data)
    for row in rows:
        shift[row] = predictions.signal_kept[row] * (data[row] - other[row])
    return shift


def _steered(predictions: Predictions, data: Tensor) -> tuple[Tensor, Tensor | None]:
    """Add the classifier's term to D, or, for ancestral steps by ADM's rule, the next latent; returns D and shift."""
    steered, gradient = predictions.steered, predictions.gradient
    if not steered:
        return data, None
    scales = (predictions.specs[row].guidance.classifier_scale for row in steered)
    scale = constant(tuple(scales), data.device)
    at_mean = {
        row: number
        for number, row in enumerate(steered)
        if row in predictions.variances and predictions.profiles[row].classifier_at_mean
    }
    rows = [row for row in steered if row not in at_mean]
    term = classifier_term(gradient, picked(predictions.alpha, steered), picked(predictions.sigma, steered), scale)
    own = [number for number, row in enumerate(steered) if row not in at_mean]
    with_term = replaced(data, rows, picked(data, rows) + picked(term, own))
    if not at_mean:
        return with_term, None
    shift = torch.zeros_like(data)
    for row, number in at_mean.items():
        shift[row] = predictions.variances[row] * scale[number] * gradient[number]
    return with_term, shift


def _limited(predictions: Predictions, data: Tensor, is_limited: Sequence[bool]) -> Tensor:
    """Limit the rows of `data` whose sample `is_limited`, as their specs say."""
    if not any(is_limited):
        return data
    rows = list(zip(predictions.specs, is_limited, strict=True))
    clip = [spec.clip and limited for spec, limited in rows]
    quantiles = [spec.dynamic_threshold if limited else None for spec, limited in rows]
    return limit_rows(data, clip, quantiles)


def effects(
    predictions: Predictions, guided: Guided, timesteps: Tensor, score: Tensor, score_name: str
) -> list[dict[str, float] | None]:
    """Telemetry: the effect of guidance on each sample, or `None` for samples whose specs don't request it.

    Args:
        predictions: the networks' predictions for R samples.
        guided: what they were combined to.
        timesteps: (R,).
        score: of the classifier, (S,), for each steered sample.
        score_name: what the score means.
    """
    if not any(spec.telemetry for spec in predictions.specs):
        return [None] * len(predictions.specs)
    beyond = torch.stack([data.abs() for data in guided.unlimited]).amax(0)
    clipped = (beyond > 1).float().flatten(1).mean(1).tolist()
    difference = (predictions.data - _unguided(predictions)).flatten(1).norm(dim=1).tolist()
    gradient_norm = predictions.gradient.flatten(1).norm(dim=1).tolist()
    scores, times = score.tolist(), timesteps.tolist()
    telemetry: list[dict[str, float] | None] = []
    for row, spec in enumerate(predictions.specs):
        entry: dict[str, float] = {"timestep": times[row], "clipped": clipped[row]}
        if row in predictions.pairs:
            entry["conditional_minus_unconditional"] = difference[row]
        if row in predictions.steered:
            number = predictions.steered.index(row)
            entry[score_name] = scores[number]
            entry["gradient_norm"] = gradient_norm[number]
        telemetry.append(entry if spec.telemetry else None)
    return telemetry
