"""Trains the emoji pack: losses of the prompted denoiser and the style classifier, and their captioned pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from models.classifiers import NoiseAwareClassifier
from models.denoisers.prompted import told
from models.networks.sentences import CAPTIONS_FILE
from models.training.captions import Captions
from models.training.classifier import ClassifierTask
from models.training.data import LabelledImages, mirrored
from models.training.diffusion import noised
from models.training.loop import save_half


@dataclass(frozen=True)
class PromptedImages(LabelledImages):
    """Pictures with style (`labels`) and concept.

    Attributes:
        concepts: `int64`, shape (N,).
        captions: captions by concept number.
    """

    concepts: Tensor
    captions: Captions

    def __getitem__(self, index: Tensor | slice) -> Self:
        return replace(super().__getitem__(index), concepts=self.concepts[index])


def shifted(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Shift a random `share` of the `uint8` pictures (N,C,H,W) by up to one pixel each way; the margin wraps around."""
    moved = images.clone()
    chosen = torch.rand(len(images), generator=generator) < share
    directions = torch.randint(-1, 2, (len(images), 2), generator=generator)
    for row in chosen.nonzero().flatten().tolist():
        moved[row] = images[row].roll(directions[row].tolist(), dims=(1, 2))
    return moved


def blurred(text: Tensor, deviation: float, dropout: float, generator: torch.Generator) -> Tensor:
    """Add noise to captions' unit vectors (N,size), so that words near them are learnt too.

    The noise's `deviation` is relative to the vectors' length; a random share `dropout` of the vectors becomes zero.
    """
    size = text.shape[-1]
    noise = deviation / size**0.5 * torch.randn(text.shape, generator=generator)
    dropped = torch.rand(len(text), generator=generator) < dropout
    return functional.normalize(text + noise, dim=-1).masked_fill(dropped[:, None], 0.0)


@dataclass
class PromptedTask:
    """Predict v of noised pictures from a caption and a style, each randomly and independently dropped.

    Attributes:
        network: UNet whose class embedding takes the output of `told`.
        scheduler: the noise schedule, of prediction type "v_prediction".
        captions: every caption's vector.
        text_dropout, style_dropout: probability of training a picture without its caption or style, respectively.
        styled_share: share of captions that name the style.
        text_noise: `deviation` of `blurred`.
        weight_cap: the loss of v is weighted by min(SNR+1, cap)/(SNR+1), so that pictures with little noise count less
            (after Hang et al. 2023, who also cap strong noise; not done here, because it decides colour and shape).
        shift_share: share of the pictures that are shifted.
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
        x_0, noise, timesteps, x_t = noised(
            images, self.scheduler, pixel_unshuffle=self.pixel_unshuffle, generator=generator
        )
        target = self.scheduler.get_velocity(x_0, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16):
            output = self.network(x_t, timesteps, None, class_labels=self._conditioning(batch, generator)).sample
        alpha_bar = self.scheduler.alphas_cumprod[timesteps]
        weight = (self.weight_cap * (1 - alpha_bar)).clamp(max=1.0)  # 1/(SNR+1) = 1 − ᾱ
        return (weight * (output.float() - target).square().mean((1, 2, 3))).mean()

    def _conditioning(self, batch: PromptedImages, generator: torch.Generator) -> Tensor:
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
        text = blurred(self.captions.vectors[rows], self.text_noise, self.text_dropout, generator)
        styles = functional.one_hot(batch.labels, self.captions.styled.shape[1]).float()
        styles = styles.masked_fill(chance(self.style_dropout)[:, None], 0.0)
        return told(text, styles)

    def save(self, folder: Path) -> None:
        """Write `unet/` and `scheduler/` in diffusers' layout, and the captions' vectors, all in half precision."""
        save_half(self.network, folder / "unet")
        self.scheduler.save_pretrained(folder / "scheduler")
        save_file({"vectors": self.captions.learnt().half()}, folder / CAPTIONS_FILE)


@dataclass
class StyleTask(ClassifierTask):
    """Classify the style of noised pictures given their caption: p(style | xₜ, t, prompt).

    Attributes:
        captions: every caption's vector; only captions that name no style are used.
        text_dropout, text_noise: `dropout` and `deviation` of `blurred`.
        shift_share, mirror_share: shares of the pictures that are shifted and mirrored, respectively.
        attack_radius: largest adversarial step, in the L2 norm of xₜ. Adversarial training makes the gradient point to
            visible features of a style instead of noise that only fools the classifier (Kawar et al. 2022).
    """

    captions: Captions
    text_dropout: float = 0.2
    text_noise: float = 0.25
    shift_share: float = 0.5
    mirror_share: float = 0.3
    attack_radius: float = 3.0

    def loss(self, batch: LabelledImages, generator: torch.Generator) -> Tensor:
        """Cross-entropy of adversarially perturbed pictures, mean over the batch."""
        assert isinstance(batch, PromptedImages)
        images = mirrored(shifted(batch.images, self.shift_share, generator), self.mirror_share, generator)
        _, _, timesteps, x_t = noised(images, self.scheduler, pixel_unshuffle=self.pixel_unshuffle, generator=generator)
        choice = torch.randint(self.captions.plain.shape[-1], (len(batch),), generator=generator)
        text = self.captions.vectors[self.captions.plain[batch.concepts, choice]]
        text = blurred(text, self.text_noise, self.text_dropout, generator)

        def cross_entropy(x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                logits = self.network(x, timesteps, text)
            return functional.cross_entropy(logits.float(), batch.labels)

        radius = self.attack_radius * torch.rand((len(batch), 1, 1, 1), generator=generator)
        (ascent,) = torch.autograd.grad(cross_entropy(x_t.requires_grad_()), x_t)
        return cross_entropy(x_t.detach() + radius * functional.normalize(ascent.flatten(1)).view_as(x_t))


def start_from_denoiser(classifier: NoiseAwareClassifier, denoiser: UNet2DConditionModel) -> None:
    """Initialize a classifier with the encoder of a `PromptedTask` denoiser, which already sees through noise."""
    weights = {
        name.replace("class_embedding", "text_embedding"): value for name, value in denoiser.state_dict().items()
    }
    first = "text_embedding.linear_1.weight"
    weights[first] = weights[first][:, : classifier.config.text_size]
    classifier.load_state_dict(weights, strict=False)
