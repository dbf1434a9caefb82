"""Trains p(y | xₜ, t): the noise-aware classifier's loss, and its accuracy at each noise level."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.training.data import AS_THEY_ARE, Augmentation, LabelledImages
from models.training.diffusion import Schedule, as_latents, noised, noised_at
from models.training.loop import in_half, save_half

ATTACK = 3.0 / 3072**0.5
"""Default size of an adversarial step per number of x_t, in the L2 norm: 3 for 32x32 pixels of three colours."""


@dataclass(kw_only=True)
class ClassifierTask:
    """Classify noised pictures or latents at every noise level of the schedule.

    Attributes:
        network: `NoiseAwareClassifier` or `AdmClassifier`.
        schedule: the pack's noise levels.
        pixel_unshuffle: factor by which H and W fold into channels before the network.
        augmentation: of the pictures.
        attack_radius: largest adversarial step, in the L2 norm of xₜ. Adversarial training makes the gradient point to
            visible features of a class instead of noise that only fools the classifier (Kawar et al. 2022).
    """

    network: Any
    schedule: Schedule
    pixel_unshuffle: int
    augmentation: Augmentation = AS_THEY_ARE
    attack_radius: float = 0.0

    def conditions(self, batch: LabelledImages, generator: torch.Generator) -> tuple[Tensor, ...]:
        """What the network is told of each picture besides xₜ and t."""
        return ()

    def loss(self, batch: LabelledImages, generator: torch.Generator) -> Tensor:
        """Cross-entropy, of adversarially perturbed pictures if there is a radius; mean over the batch."""
        images = self.augmentation(batch.images, generator)
        mixed = noised(as_latents(images, self.pixel_unshuffle), self.schedule, generator)
        conditions = self.conditions(batch, generator)

        def cross_entropy(x: Tensor) -> Tensor:
            with in_half(x.device):
                logits = self.network(x, mixed.timesteps, *conditions)
            return functional.cross_entropy(logits.float(), batch.labels)

        x_t = mixed.x_t
        if self.attack_radius == 0.0 or not torch.is_grad_enabled():
            return cross_entropy(x_t)
        uniform = torch.rand((len(batch), 1, 1, 1), generator=generator, device=generator.device)
        (ascent,) = torch.autograd.grad(cross_entropy(x_t.requires_grad_()), x_t)
        step = self.attack_radius * uniform * functional.normalize(ascent.flatten(1)).view_as(x_t)
        return cross_entropy(x_t.detach() + step)

    @torch.no_grad()
    def accuracies(self, data: LabelledImages, device: torch.device, *, levels: int = 10) -> list[tuple[float, float]]:
        """(share of the noise's range, share of `data` that is recognised there), from no noise to pure noise."""
        generator = torch.Generator(device).manual_seed(0)
        curve = []
        for share in torch.linspace(0, 1, levels).tolist():
            level, right = round(share * (len(self.schedule) - 1)), 0
            for start in range(0, len(data), 256):
                part = data[start : start + 256].to(device)
                x_0 = as_latents(part.images, self.pixel_unshuffle)
                noise = torch.randn(x_0.shape, generator=generator, device=device)
                mixed = noised_at(x_0, self.schedule, torch.full((len(part),), level, device=device), noise)
                with in_half(device):
                    logits = self.network(mixed.x_t, mixed.timesteps, *self.conditions(part, generator))
                right += int((logits.argmax(1) == part.labels).sum())
            curve.append((share, right / len(data)))
        return curve

    def save(self, folder: Path) -> None:
        """Write `classifier/`, with weights in half precision."""
        save_half(self.network, folder / "classifier")
