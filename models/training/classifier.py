"""Trains p(y | xₜ, t): the noise-aware classifier's loss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn import functional

from models.classifiers import NoiseAwareClassifier
from models.training.data import LabelledImages
from models.training.diffusion import noised
from models.training.loop import save_half


@dataclass
class ClassifierTask:
    """Classify noised, pixel-unshuffled pictures at every noise level of the schedule."""

    network: NoiseAwareClassifier
    scheduler: DDPMScheduler
    pixel_unshuffle: int

    def loss(self, batch: LabelledImages, generator: torch.Generator) -> Tensor:
        """Cross-entropy, mean over the batch."""
        _, _, timesteps, x_t = noised(
            batch.images, self.scheduler, pixel_unshuffle=self.pixel_unshuffle, generator=generator
        )
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.network(x_t, timesteps)
        return functional.cross_entropy(logits.float(), batch.labels)

    def save(self, folder: Path) -> None:
        """Write `classifier/`, with weights in half precision."""
        save_half(self.network, folder / "classifier")
