"""Guidance against a closed form: a one-dimensional mixture of two Gaussians, whose score and posterior are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models import guidance
from models.noise import draw_noise
from models.samplers import advance, compile_table
from models.samplers.table import LATENT

MEANS, DEVIATION, SHARES = torch.tensor([-1.0, 0.6]), 0.25, torch.tensor([0.3, 0.7])
COUNT = 20_000
CONFIG = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "sample",
}


def component_predictions(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[x₀ | x, component], (2, N): Bayes for x = α·x₀ + σ·ε with Gaussian x₀."""
    variance = alpha**2 * DEVIATION**2 + sigma**2
    return MEANS[:, None] + alpha * DEVIATION**2 / variance * (x - alpha * MEANS[:, None])


def log_posterior(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """log p(component | x), (2, N)."""
    variance = alpha**2 * DEVIATION**2 + sigma**2
    joint = SHARES.log()[:, None] - (x - alpha * MEANS[:, None]) ** 2 / (2 * variance)
    return torch.log_softmax(joint, dim=0)


def sample(sampler: str, *, free_scale: float | None, classifier_scale: float, conditional: bool) -> np.ndarray:
    table = compile_table(sampler, CONFIG, steps=200)
    state = {LATENT: draw_noise(3, 0, 0, (1, 1, COUNT))[None] * table.initial_scale}
    for i in range(len(table)):
        x = state[LATENT]
        seen = (table.input_scale[i] * x).flatten()
        alpha, sigma = float(table.alpha[i]), float(table.sigma[i])
        each = component_predictions(seen, alpha, sigma)
        mixed = (log_posterior(seen, alpha, sigma).exp() * each).sum(0)
        data = each[1] if conditional else mixed
        data = data.view(1, 1, 1, -1)
        if free_scale is not None:
            data = guidance.classifier_free(
                each[1].view(1, 1, 1, -1), mixed.view(1, 1, 1, -1), torch.tensor([free_scale])
            )
        if classifier_scale:
            with torch.enable_grad():
                point = seen.clone().requires_grad_(True)
                gradient = torch.autograd.grad(log_posterior(point, alpha, sigma)[1].sum(), point)[0]
            data = data + guidance.classifier_term(
                gradient.view(1, 1, 1, -1),
                torch.tensor([alpha]),
                torch.tensor([sigma]),
                torch.tensor([classifier_scale]),
            )
        noise = draw_noise(3, 0, i + 1, (1, 1, COUNT))[None]
        state = advance(state, data, noise, torch.from_numpy(table.weights[i]).float()[None])
    return state[LATENT].flatten().numpy()


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
def test_without_guidance_the_mixture_comes_back(sampler: str) -> None:
    drawn = sample(sampler, free_scale=None, classifier_scale=0.0, conditional=False)
    assert (drawn > -0.2).mean() == pytest.approx(float(SHARES[1]), abs=0.03)
    for component, side in ((0, drawn < -0.2), (1, drawn > -0.2)):
        assert drawn[side].mean() == pytest.approx(float(MEANS[component]), abs=0.04)
        assert drawn[side].std() == pytest.approx(DEVIATION, abs=0.04)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
@pytest.mark.parametrize(("free_scale", "classifier_scale"), [(1.0, 0.0), (None, 1.0)])
def test_scale_one_of_either_kind_is_the_class_itself(
    sampler: str, free_scale: float | None, classifier_scale: float
) -> None:
    """∇log p(x) + ∇log p(y|x) is ∇log p(x|y): the true classifier at scale 1 gives the conditional, like w = 1."""
    drawn = sample(sampler, free_scale=free_scale, classifier_scale=classifier_scale, conditional=False)
    assert drawn.mean() == pytest.approx(float(MEANS[1]), abs=0.03)
    assert drawn.std() == pytest.approx(DEVIATION, abs=0.03)


@pytest.mark.parametrize("scale", [2.0, 4.0])
def test_classifier_and_classifier_free_are_one_guidance(scale: float) -> None:
    """With exact networks, D_u + w(D_c − D_u) equals D_u + (σ²/α)·w·∇log p(y|x): the same pictures, draw by draw."""
    free = sample("ddim", free_scale=scale, classifier_scale=0.0, conditional=False)
    steered = sample("ddim", free_scale=None, classifier_scale=scale, conditional=False)
    assert np.abs(free - steered).max() < 1e-2
    assert free.mean() > float(MEANS[1])


def test_scale_zero_is_unconditional() -> None:
    zero = sample("ddim", free_scale=0.0, classifier_scale=0.0, conditional=False)
    plain = sample("ddim", free_scale=None, classifier_scale=0.0, conditional=False)
    assert np.array_equal(zero, plain)


def _predictions() -> tuple[Tensor, Tensor, Tensor, float, float]:
    """x, two noise predictions at it, and a level (α, σ)."""
    x, conditional, unconditional = torch.randn(3, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    return x, conditional, unconditional, 0.6, 0.8


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.0, 3.0, 7.5])
def test_the_scale_is_the_papers_plus_one_and_edm2s(scale: float) -> None:
    x, conditional, unconditional, alpha, sigma = _predictions()

    def data(epsilon: Tensor) -> Tensor:
        return (x - sigma * epsilon) / alpha

    scales = torch.full((2,), scale, dtype=torch.float64)
    mine = guidance.classifier_free(data(conditional), data(unconditional), scales)
    of_paper = (1 + (scale - 1)) * conditional - (scale - 1) * unconditional
    of_edm2 = torch.lerp(unconditional, conditional, scale)
    for published in (of_paper, of_edm2):
        assert torch.allclose(mine, data(published), rtol=1e-6, atol=1e-9)


def test_the_classifiers_term_is_k_diffusions() -> None:
    _, gradient, _, alpha, sigma = _predictions()
    level = [torch.full((2,), value, dtype=torch.float64) for value in (alpha, sigma, 2.5)]
    mine = guidance.classifier_term(gradient, *level)
    # There x is x₀ + (σ/α)·ε: the gradient with respect to it is α times that with respect to the network's input.
    published = (sigma / alpha) ** 2 * (2.5 * alpha * gradient)
    assert torch.allclose(mine, published, rtol=1e-6)
