"""Learning p(y | xₜ, t): the noise-aware classifier's loss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn import functional

from models.classifiers import NoiseAwareClassifier
from models.training.data import LabelledImages, to_unit_range
from models.training.diffusion import spread_timesteps
from models.training.loop import save_half


@dataclass
class ClassifierTask:
    """Tell the class of noised, pixel-unshuffled pictures at every noise level the sampler visits."""

    network: NoiseAwareClassifier
    scheduler: DDPMScheduler
    pixel_unshuffle: int

    def loss(self, batch: LabelledImages, generator: torch.Generator) -> Tensor:
        """Cross-entropy, mean over the batch."""
        x_t, timesteps = self.noised(batch.images, generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.network(x_t, timesteps)
        return functional.cross_entropy(logits.float(), batch.labels)

    def noised(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(xₜ, timesteps) of `uint8` pictures (N,C,H,W): (N,C·f²,H/f,W/f) and (N,)."""
        x_0 = functional.pixel_unshuffle(to_unit_range(images), self.pixel_unshuffle)
        noise = torch.randn(x_0.shape, generator=generator)
        timesteps = spread_timesteps(len(images), self.scheduler.config.num_train_timesteps, generator)
        return self.scheduler.add_noise(x_0, noise, timesteps), timesteps

    def save(self, folder: Path) -> None:
        """Write `classifier/`, the weights in half precision."""
        save_half(self.network, folder / "classifier")
