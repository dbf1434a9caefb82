"""Learning to draw what a prompt says: the emoji pack's loss, and its pictures with their captions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from models.denoisers.prompted import CAPTIONS_FILE, told
from models.training.captions import Captions
from models.training.data import LabelledImages, to_unit_range
from models.training.diffusion import spread_timesteps
from models.training.loop import save_half


@dataclass(frozen=True)
class PromptedImages(LabelledImages):
    """Pictures with style (`labels`) and concept.

    Attributes:
        concepts: `int64`, shape (N,).
        captions: what each concept is called, by its number.
    """

    concepts: Tensor
    captions: Captions

    def __getitem__(self, index: Tensor | slice) -> Self:
        return replace(super().__getitem__(index), concepts=self.concepts[index])


def shifted(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """`uint8` pictures (N,C,H,W), a share of them moved by a pixel in some direction; their margin wraps around."""
    moved = images.clone()
    chosen = torch.rand(len(images), generator=generator) < share
    directions = torch.randint(-1, 2, (len(images), 2), generator=generator)
    for row in chosen.nonzero().flatten().tolist():
        moved[row] = images[row].roll(directions[row].tolist(), dims=(1, 2))
    return moved


@dataclass
class PromptedTask:
    """Predict v of noised pictures from a caption and a style, each dropped by itself now and then.

    Attributes:
        network: UNet whose class embedding takes what `told` makes.
        scheduler: the noise schedule, of prediction type "v_prediction".
        captions: every caption's vector.
        text_dropout, style_dropout: probability of training a picture without its caption, without its style.
        styled_share: share of captions that name the style.
        text_noise: deviation of what is added to the caption's vector, as a share of its length: so that words near
            a known one draw nearly the same.
        weight_cap: the loss is min(SNR+1, cap)/(SNR+1) times that of v: what is almost free of noise counts less
            (after Hang et al. 2023, who also cap where noise is strong; there colour and shape are decided).
        shift_share: share of the pictures that are moved by a pixel.
    """

    network: UNet2DConditionModel
    scheduler: DDPMScheduler
    pixel_unshuffle: int
    captions: Captions
    text_dropout: float = 0.1
    style_dropout: float = 0.3
    styled_share: float = 0.12
    text_noise: float = 0.25
    weight_cap: float = 5.0
    shift_share: float = 0.2

    def loss(self, batch: LabelledImages, generator: torch.Generator) -> Tensor:
        """Weighted mean squared error of v, over batch and pixels."""
        assert isinstance(batch, PromptedImages)
        images = shifted(batch.images, self.shift_share, generator)
        x_0 = functional.pixel_unshuffle(to_unit_range(images), self.pixel_unshuffle)
        noise = torch.randn(x_0.shape, generator=generator)
        timesteps = spread_timesteps(len(batch), self.scheduler.config.num_train_timesteps, generator)
        x_t = self.scheduler.add_noise(x_0, noise, timesteps)
        target = self.scheduler.get_velocity(x_0, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16):
            output = self.network(x_t, timesteps, None, class_labels=self._told(batch, generator)).sample
        alpha_bar = self.scheduler.alphas_cumprod[timesteps]
        weight = (self.weight_cap * (1 - alpha_bar)).clamp(max=1.0)  # 1/(SNR+1) = 1 − ᾱ
        return (weight * (output.float() - target).square().mean((1, 2, 3))).mean()

    def _told(self, batch: PromptedImages, generator: torch.Generator) -> Tensor:
        count = len(batch)

        def chance(share: float) -> Tensor:
            return torch.rand(count, generator=generator) < share

        choice = torch.randint(self.captions.plain.shape[-1], (count,), generator=generator)
        styled, plain = self.captions.styled, self.captions.plain
        rows = torch.where(
            chance(self.styled_share),
            styled[batch.concepts, batch.labels, choice],
            plain[batch.concepts, choice],
        )
        text = self.captions.vectors[rows]
        size = text.shape[-1]
        text = functional.normalize(
            text + self.text_noise / size**0.5 * torch.randn(text.shape, generator=generator), dim=-1
        )
        text = text.masked_fill(chance(self.text_dropout)[:, None], 0.0)
        styles = functional.one_hot(batch.labels, self.captions.styled.shape[1]).float()
        styles = styles.masked_fill(chance(self.style_dropout)[:, None], 0.0)
        return told(text, styles)

    def save(self, folder: Path) -> None:
        """Write `unet/` and `scheduler/` in diffusers' layout, and the captions' vectors, all in half precision."""
        save_half(self.network, folder / "unet")
        self.scheduler.save_pretrained(folder / "scheduler")
        save_file({"vectors": self.captions.learnt().half()}, folder / CAPTIONS_FILE)
