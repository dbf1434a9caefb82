"""Trains the emoji pack: losses of the prompted denoiser and the style classifier, and their captioned pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from models.classifiers import NoiseAwareClassifier
from models.denoisers.prompted import told
from models.networks.sentences import CAPTIONS_FILE
from models.training.captions import Captions
from models.training.classifier import ClassifierTask
from models.training.data import Augmentation, LabelledImages
from models.training.diffusion import DenoisingTask, Noised

_DENOISED, _CLASSIFIED = Augmentation(shift=0.2), Augmentation(shift=0.5, flip=0.3)


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

    def to(self, device: torch.device) -> Self:
        return replace(super().to(device), concepts=self.concepts.to(device))


def blurred(text: Tensor, deviation: float, dropout: float, generator: torch.Generator) -> Tensor:
    """Add noise to captions' unit vectors (N,size), so that words near them are learnt too.

    The noise's `deviation` is relative to the vectors' length; a random share `dropout` of the vectors becomes zero.
    """
    size, device = text.shape[-1], generator.device
    noise = deviation / size**0.5 * torch.randn(text.shape, generator=generator, device=device)
    dropped = torch.rand(len(text), generator=generator, device=device) < dropout
    return functional.normalize(text + noise, dim=-1).masked_fill(dropped[:, None], 0.0)


@dataclass(kw_only=True)
class PromptedTask(DenoisingTask):
    """The denoiser conditioned on a caption and a style, each randomly and independently dropped.

    Attributes:
        network: UNet whose class embedding takes the output of `told`.
        captions: every caption's vector.
        text_dropout, style_dropout: probability of training a picture without its caption or style, respectively.
        styled_share: share of captions that name the style.
        text_noise: `deviation` of `blurred`.
    """

    network: UNet2DConditionModel
    captions: Captions
    text_dropout: float = 0.1
    style_dropout: float = 0.3
    styled_share: float = 0.12
    text_noise: float = 0.25
    min_snr: float | None = 5.0
    augmentation: Augmentation = _DENOISED

    def conditioning(self, batch: LabelledImages, generator: torch.Generator) -> Tensor:
        assert isinstance(batch, PromptedImages)
        count, captions = len(batch), self.captions.to(generator.device)

        def chance(share: float) -> Tensor:
            return torch.rand(count, generator=generator, device=generator.device) < share

        choice = torch.randint(captions.plain.shape[-1], (count,), generator=generator, device=generator.device)
        rows = captions.plain[batch.concepts, choice]
        if self.styled_share:
            styled = captions.styled[batch.concepts, batch.labels, choice]
            rows = torch.where(chance(self.styled_share), styled, rows)
        text = blurred(captions.vectors[rows], self.text_noise, self.text_dropout, generator)
        if not captions.styled.shape[1]:
            return told(text, text[:, :0])
        styles = functional.one_hot(batch.labels, captions.styled.shape[1]).float()
        styles = styles.masked_fill(chance(self.style_dropout)[:, None], 0.0)
        return told(text, styles)

    def predict(self, batch: Noised, conditioning: Tensor) -> Tensor:
        return self.network(batch.x_t, batch.timesteps, None, class_labels=conditioning).sample

    def save(self, folder: Path) -> None:
        """Write `unet/` and `scheduler/` in diffusers' layout, and the captions' vectors, all in half precision."""
        super().save(folder)
        save_file({"vectors": self.captions.learnt().half()}, folder / CAPTIONS_FILE)


@dataclass(kw_only=True)
class StyleTask(ClassifierTask):
    """Classify the style of noised pictures given their caption: p(style | xₜ, t, prompt).

    Attributes:
        captions: every caption's vector; only captions that name no style are used.
        text_dropout, text_noise: `dropout` and `deviation` of `blurred`.
    """

    captions: Captions
    text_dropout: float = 0.2
    text_noise: float = 0.25
    attack_radius: float = 3.0
    augmentation: Augmentation = _CLASSIFIED

    def conditions(self, batch: LabelledImages, generator: torch.Generator) -> tuple[Tensor, ...]:
        assert isinstance(batch, PromptedImages)
        captions, device = self.captions.to(generator.device), generator.device
        choice = torch.randint(captions.plain.shape[-1], (len(batch),), generator=generator, device=device)
        text = captions.vectors[captions.plain[batch.concepts, choice]]
        return (blurred(text, self.text_noise, self.text_dropout, generator),)


def start_from_denoiser(classifier: NoiseAwareClassifier, denoiser: UNet2DConditionModel) -> None:
    """Initialize a classifier with the encoder of a `PromptedTask` denoiser, which already sees through noise."""
    weights = {
        name.replace("class_embedding", "text_embedding"): value for name, value in denoiser.state_dict().items()
    }
    first = "text_embedding.linear_1.weight"
    weights[first] = weights[first][:, : classifier.config.text_size]
    classifier.load_state_dict(weights, strict=False)
