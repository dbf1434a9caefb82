"""Trains a denoiser: the loss of a class-conditional diffusion model with a null class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor
from torch.nn import functional

from models.training.data import LabelledImages, to_unit_range
from models.training.loop import save_half


def spread_timesteps(count: int, num_train_timesteps: int, generator: torch.Generator) -> Tensor:
    """Timesteps of one batch, spread evenly from one random offset (Kingma et al. 2021, appendix I.1).

    Each timestep alone is uniform over 0..num_train_timesteps-1; together they cover the range, which lowers the
    variance of the loss. Returns `int64`, shape (count,).
    """
    offset = torch.rand((), generator=generator)
    positions = (offset + torch.arange(count) / count) % 1.0
    return (positions * num_train_timesteps).long().clamp(max=num_train_timesteps - 1)


class Noised(NamedTuple):
    """A noised batch.

    Attributes:
        x_0, noise, x_t: the pixel-unshuffled pictures, the noise, and their mixture: (B,C·f²,H/f,W/f).
        timesteps: (B,), the noise levels.
    """

    x_0: Tensor
    noise: Tensor
    timesteps: Tensor
    x_t: Tensor


def noised(images: Tensor, scheduler: DDPMScheduler, *, pixel_unshuffle: int, generator: torch.Generator) -> Noised:
    """Add noise to `uint8` pictures (B,C,H,W), at timesteps spread over the whole schedule."""
    x_0 = functional.pixel_unshuffle(to_unit_range(images), pixel_unshuffle)
    noise = torch.randn(x_0.shape, generator=generator)
    timesteps = spread_timesteps(len(images), scheduler.config.num_train_timesteps, generator)
    return Noised(x_0, noise, timesteps, scheduler.add_noise(x_0, noise, timesteps))


@dataclass
class DiffusionTask:
    """Predict `prediction_type` of noised, pixel-unshuffled pictures, with random label dropout.

    Attributes:
        network: class-conditional UNet whose class `null_label` means "no label".
        scheduler: the noise schedule and the prediction type ("epsilon" or "v_prediction").
        pixel_unshuffle: factor by which H and W fold into channels before the network.
        label_dropout: probability of training a picture without its label (Ho & Salimans 2022).
    """

    network: UNet2DModel
    scheduler: DDPMScheduler
    pixel_unshuffle: int
    null_label: int
    label_dropout: float

    def loss(self, batch: LabelledImages, generator: torch.Generator) -> Tensor:
        """Mean squared error of the network's output, over batch and pixels."""
        x_0, noise, timesteps, x_t = noised(
            batch.images, self.scheduler, pixel_unshuffle=self.pixel_unshuffle, generator=generator
        )
        dropped = torch.rand(len(batch), generator=generator) < self.label_dropout
        labels = torch.where(dropped, self.null_label, batch.labels)
        if self.scheduler.config.prediction_type == "v_prediction":
            target = self.scheduler.get_velocity(x_0, noise, timesteps)
        else:
            target = noise
        with torch.autocast("cpu", torch.bfloat16):
            output = self.network(x_t, timesteps, class_labels=labels).sample
        return functional.mse_loss(output.float(), target)

    def save(self, folder: Path) -> None:
        """Write `unet/` and `scheduler/` in diffusers' layout, with weights in half precision."""
        save_half(self.network, folder / "unet")
        self.scheduler.save_pretrained(folder / "scheduler")
