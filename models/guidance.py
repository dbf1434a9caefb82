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

from models.profiles import Profile
from models.spec import SampleSpec


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The networks' predictions for R samples in one evaluation.

    Attributes:
        specs, profiles: R of each: how the samples are guided.
        data: (R,C,H,W), the data prediction of each sample's first row: the conditional one if there is one.
        from_latent: (R,C,H,W), the part of it that is a multiple of the latent; the rest, of the network's output.
        pairs: indices of the P samples that have a second, unconditional row.
        unconditional: (P,C,H,W), the data predictions of those rows.
        steered: indices of the Q samples that the classifier steers.
        gradient: (Q,C,H,W), ∇ₓ log p(y | xₜ, t) at the network's input.
        alpha, sigma: (R,), the network's input is alpha·x₀ + sigma·noise.
        signal_kept: (R,), how much of this latent's x₀ the sampler carries into the next latent.
        variances: (C,H,W) of the step, by sample, if its sampler leaves the variance to the network or classifier.
    """

    specs: Sequence[SampleSpec]
    profiles: Sequence[Profile]
    data: Tensor
    from_latent: Tensor
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
        unguided: (R,C,H,W), D without guidance: for pairs, the unconditional one.
        unlimited: D before each limit was applied.
    """

    data: Tensor
    shift: Tensor | None
    unguided: Tensor
    unlimited: tuple[Tensor, ...]


def combine(predictions: Predictions) -> Guided:
    """Guide every sample according to its spec."""
    free, unguided = _classifier_free_rows(predictions)
    limited = _limited(predictions, free, [profile.clips_before for profile in predictions.profiles])
    steered, at_mean = _steered(predictions, limited)
    data = _limited(predictions, steered, [profile.clips_after for profile in predictions.profiles])
    plus_plus, kept_noise = (
        _plus_plus_shift(predictions, limited, unguided),
        _kept_noise_shift(predictions, steered, data),
    )
    shifts = [shift for shift in (at_mean, plus_plus, kept_noise) if shift is not None]
    return Guided(
        data=data, shift=reduce(torch.add, shifts) if shifts else None, unguided=unguided, unlimited=(free, steered)
    )


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


def limit_rows(data: Tensor, clip: Tensor, quantiles: Sequence[float | None]) -> Tensor:
    """Limit each row: by dynamic thresholding if it has a quantile, else by clipping if `clip` is set."""
    limited_rows = torch.where(_per_row(clip), data.clamp(-1, 1), data)
    for row, quantile in enumerate(quantiles):
        if quantile is not None:
            limited_rows[row] = thresholded(data[row], quantile)
    return limited_rows


def _per_row(values: Tensor) -> Tensor:
    return values[:, None, None, None]  # (R,1,1,1)


def _classifier_free_rows(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Apply classifier-free guidance and rescale; returns the guided and the unguided D, both (R,C,H,W)."""
    pairs = list(predictions.pairs)
    if not pairs:
        return predictions.data, predictions.data
    data, unguided = predictions.data.clone(), predictions.data.clone()
    guidance = [predictions.specs[row].guidance for row in pairs]
    scale = torch.tensor([each.free_scale for each in guidance], device=data.device)
    unguided[pairs] = predictions.unconditional
    data[pairs] = classifier_free(predictions.data[pairs], predictions.unconditional, scale)
    for row, each in zip(pairs, guidance, strict=True):
        if each.rescale:
            kept = predictions.from_latent[row] if predictions.profiles[row].rescales_output else 0.0
            data[row] = kept + rescaled(data[row] - kept, predictions.data[row] - kept, each.rescale)
    return data, unguided


def _plus_plus_shift(predictions: Predictions, data: Tensor, unguided: Tensor) -> Tensor | None:
    """The term that CFG++ adds to the next latents, (R,C,H,W), if any sample uses it: Chung et al. 2024.

    A step estimates the noise from x − a·D. CFG++ uses the unguided D_u there, which adds a share of D − D_u to the
    next latent.
    """
    plus_plus = [row for row in predictions.pairs if predictions.specs[row].guidance.plus_plus]
    return _kept_difference(predictions, plus_plus, data, unguided)


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
    steered = list(predictions.steered)
    if not steered:
        return data, None
    data, shift = data.clone(), torch.zeros_like(data)
    scale = torch.tensor([predictions.specs[row].guidance.classifier_scale for row in steered], device=data.device)
    term = classifier_term(predictions.gradient, predictions.alpha[steered], predictions.sigma[steered], scale)
    for number, row in enumerate(steered):
        if predictions.profiles[row].classifier_at_mean and row in predictions.variances:
            shift[row] += predictions.variances[row] * scale[number] * predictions.gradient[number]
        else:
            data[row] += term[number]
    return data, shift


def _limited(predictions: Predictions, data: Tensor, is_limited: Sequence[bool]) -> Tensor:
    """Limit the rows of `data` whose sample `is_limited`, as their specs say."""
    if not any(is_limited):
        return data
    rows = list(zip(predictions.specs, is_limited, strict=True))
    clip = torch.tensor([spec.clip and limited for spec, limited in rows])
    quantiles = [spec.dynamic_threshold if limited else None for spec, limited in rows]
    return limit_rows(data, clip.to(data.device), quantiles)


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
    difference = (predictions.data - guided.unguided).flatten(1).norm(dim=1).tolist()
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
