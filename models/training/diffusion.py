"""Trains a denoiser: noise levels, targets and weights of the loss, and the class-conditional task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from diffusers import SchedulerMixin, UNet2DModel
from torch import Tensor
from torch.nn import functional

from models.samplers.folder import check_schedule
from models.samplers.kinds import FLOW_PREDICTION
from models.samplers.levels import alpha_bars
from models.training.data import AS_THEY_ARE, Augmentation, LabelledImages, to_unit_range
from models.training.loop import in_half, save_half


def spread_timesteps(count: int, num_train_timesteps: int, generator: torch.Generator) -> Tensor:
    """Timesteps of one batch, spread evenly from one random offset (Kingma et al. 2021, appendix I.1).

    Each timestep alone is uniform over 0..num_train_timesteps-1; together they cover the range, which lowers the
    variance of the loss. Returns `int64`, shape (count,).
    """
    offset = torch.rand((), generator=generator, device=generator.device)
    positions = (offset + torch.arange(count, device=generator.device) / count) % 1.0
    return (positions * num_train_timesteps).long().clamp(max=num_train_timesteps - 1)


@dataclass(frozen=True)
class Schedule:
    """The noise levels that a pack's networks see: x_t = α·x_0 + σ·noise.

    Attributes:
        alphas, sigmas: by level (T,), with rising noise.
        timesteps: what the networks are told of a level (T,).
        prediction_type: what the denoiser predicts.
    """

    alphas: Tensor
    sigmas: Tensor
    timesteps: Tensor
    prediction_type: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """The schedule of a scheduler's configuration.

        Raises:
            NotLinear: it belongs to networks trained on levels that can't be known.
        """
        prediction = str(config.get("prediction_type", FLOW_PREDICTION))  # flow-matching schedulers may not say it
        check_schedule(config, prediction)
        total = int(config["num_train_timesteps"])
        if prediction == FLOW_PREDICTION:
            straight = (torch.arange(total) + 1) / total
            shift = float(config.get("shift") or 1.0)
            sigmas = shift * straight / (1 + (shift - 1) * straight)
            return cls(1 - sigmas, sigmas, sigmas * total, prediction)
        bars = torch.from_numpy(alpha_bars(config))
        return cls(bars.sqrt().float(), (1 - bars).sqrt().float(), torch.arange(total), prediction)

    @classmethod
    def of_scheduler(cls, scheduler: SchedulerMixin) -> Self:
        return cls.of({**scheduler.config, "_class_name": type(scheduler).__name__})

    def __len__(self) -> int:
        return len(self.timesteps)

    def to(self, device: torch.device) -> Schedule:
        if self.alphas.device == device:
            return self
        return Schedule(self.alphas.to(device), self.sigmas.to(device), self.timesteps.to(device), self.prediction_type)


class Noised(NamedTuple):
    """A noised batch.

    Attributes:
        x_0, noise, x_t: latents, the noise, and their mixture: (B,C,H,W).
        timesteps: (B,), as the networks are told.
        alpha, sigma: (B,1,1,1), the shares of x_0 and noise.
    """

    x_0: Tensor
    noise: Tensor
    timesteps: Tensor
    x_t: Tensor
    alpha: Tensor
    sigma: Tensor


def as_latents(images: Tensor, pixel_unshuffle: int) -> Tensor:
    """`uint8` pictures (B,C,H,W) with blocks of pixels folded into channels; float latents are returned as they are."""
    if images.dtype != torch.uint8:
        return images
    return functional.pixel_unshuffle(to_unit_range(images), pixel_unshuffle)


def noised_at(x_0: Tensor, schedule: Schedule, levels: Tensor, noise: Tensor) -> Noised:
    """Mix latents with noise (B,C,H,W), each at its level (B,) of the schedule."""
    own = schedule.to(x_0.device)
    alpha, sigma = (values[levels].view(-1, 1, 1, 1) for values in (own.alphas, own.sigmas))
    return Noised(x_0, noise, own.timesteps[levels], alpha * x_0 + sigma * noise, alpha, sigma)


def noised(x_0: Tensor, schedule: Schedule, generator: torch.Generator) -> Noised:
    """Add noise to latents (B,C,H,W), at levels spread over the whole schedule."""
    noise = torch.randn(x_0.shape, generator=generator, device=generator.device)
    return noised_at(x_0, schedule, spread_timesteps(len(x_0), len(schedule), generator), noise)


def prediction_loss(output: Tensor, batch: Noised, prediction_type: str, min_snr: float | None) -> Tensor:
    """Mean squared error of the network's output (B,C,H,W), weighted by noise level if `min_snr` is set.

    With γ = `min_snr` the error of x_0 counts at most γ times (Hang et al. 2023): the weight of ε is min(SNR, γ)/SNR,
    that of x_0 is min(SNR, γ). That of v and of a flow is min(SNR+1, γ)/(SNR+1): unlike the paper's it does not vanish
    at strong noise, which decides colour and shape.
    """
    x_0, noise, _, _, alpha, sigma = batch
    match prediction_type:
        case "epsilon":
            target, weight = noise, (min_snr or 0.0) * (sigma / alpha.clamp(min=1e-6)) ** 2
        case "v_prediction":
            target, weight = alpha * noise - sigma * x_0, (min_snr or 0.0) * sigma**2
        case "flow_prediction":
            target, weight = noise - x_0, (min_snr or 0.0) * sigma**2
        case _:
            target, weight = x_0, (alpha / sigma) ** 2
    error = (output.float() - target).square()
    if min_snr is None:
        return error.mean()
    return (weight.clamp(max=min_snr if prediction_type == "sample" else 1.0) * error).mean()


@dataclass(kw_only=True)
class DenoisingTask(ABC):
    """Predict what the scheduler's `prediction_type` says, of noised pictures or latents.

    Attributes:
        network: the denoiser.
        scheduler: diffusers' scheduler with the pack's noise schedule and prediction type.
        pixel_unshuffle: factor by which H and W fold into channels before the network.
        augmentation: of the pictures.
        min_snr: γ of `prediction_loss`.
    """

    network: Any
    scheduler: SchedulerMixin
    pixel_unshuffle: int
    augmentation: Augmentation = AS_THEY_ARE
    min_snr: float | None = None
    schedule: Schedule = field(init=False)

    def __post_init__(self) -> None:
        self.schedule = Schedule.of_scheduler(self.scheduler)

    def loss(self, batch: LabelledImages, generator: torch.Generator) -> Tensor:
        """Error of the network's output, mean over batch and pixels."""
        images = self.augmentation(batch.images, generator)
        mixed = noised(as_latents(images, self.pixel_unshuffle), self.schedule, generator)
        conditioning = self.conditioning(batch, generator)
        with in_half(mixed.x_t.device):
            output = self.predict(mixed, conditioning)
        return prediction_loss(output, mixed, self.schedule.prediction_type, self.min_snr)

    @abstractmethod
    def conditioning(self, batch: LabelledImages, generator: torch.Generator) -> Tensor:
        """What the network is told of each picture, at random without it."""

    @abstractmethod
    def predict(self, batch: Noised, conditioning: Tensor) -> Tensor:
        """The network's output (B,C,H,W)."""

    def save(self, folder: Path) -> None:
        """Write `unet/` and `scheduler/` in diffusers' layout, with weights in half precision."""
        save_half(self.network, folder / "unet")
        self.scheduler.save_pretrained(folder / "scheduler")


@dataclass(kw_only=True)
class DiffusionTask(DenoisingTask):
    """The class-conditional denoiser, with random label dropout.

    Attributes:
        network: class-conditional UNet whose class `null_label` means "no label".
        label_dropout: probability of training a picture without its label (Ho & Salimans 2022).
    """

    network: UNet2DModel
    null_label: int
    label_dropout: float

    def conditioning(self, batch: LabelledImages, generator: torch.Generator) -> Tensor:
        dropped = torch.rand(len(batch), generator=generator, device=generator.device) < self.label_dropout
        return torch.where(dropped, self.null_label, batch.labels)

    def predict(self, batch: Noised, conditioning: Tensor) -> Tensor:
        return self.network(batch.x_t, batch.timesteps, class_labels=conditioning).sample
