"""The recipe of a pack that draws a user's pictures, by class or by caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin, UNet2DConditionModel, UNet2DModel

from models.classifiers import Judge, load_judge
from models.networks.sentences import SentenceEncoder, encoder_folder
from models.pack import PROMPTED_PIXELS, open_pack
from models.spec import Guidance, SampleSpec
from models.training.captions import Captions
from models.training.data import Augmentation, LabelledImages
from models.training.diffusion import DenoisingTask, DiffusionTask
from models.training.emoji_recipe import ENCODER, TEXT_SIZE
from models.training.judge import JudgeTask, save_reference
from models.training.own.pictures import Pictures
from models.training.own.presets import Size, judge_channels
from models.training.prompted import PromptedImages, PromptedTask
from models.training.recipe import PixelRecipe

SHOWN = 10  # pictures in a row of the grid


@dataclass(frozen=True, kw_only=True)
class OwnRecipe(PixelRecipe):
    """What is common to packs of a user's pictures.

    Attributes:
        trained: the pictures to train on.
        held_out: those to measure with, or the same if there are too few.
        augmentation: of the training pictures.
        min_snr: γ of the loss, or `None`.
        flow: whether noise follows straight paths.
        dropout: share of pictures trained without label, and without caption.
    """

    trained: Pictures
    held_out: Pictures
    augmentation: Augmentation
    min_snr: float | None
    flow: bool
    dropout: float

    def scheduler(self) -> SchedulerMixin:
        if not self.flow:
            return super().scheduler()
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.register_to_config(prediction_type=self.prediction_type)
        return scheduler

    def pictures(self, folder: Path) -> LabelledImages:
        return self.trained.labelled()

    @property
    def sampler(self) -> str:
        return str(self.serving["sampler"])

    def test_pictures(self) -> LabelledImages:
        """The held-out pictures, as the denoiser's task takes them."""
        return self.held_out.labelled()

    def judge_task(self) -> JudgeTask:
        torch.manual_seed(self.judging.seed)
        _, channels, size, _ = self.trained.images.shape
        network = Judge(num_classes=len(self.labels), in_channels=channels, channels=judge_channels(size))
        return JudgeTask(network=network, wears=True)

    def save_reference(self, data_folder: Path, folder: Path) -> None:
        save_reference(load_judge(open_pack(str(folder.resolve()))), self.held_out.labelled(), folder)


@dataclass(frozen=True, kw_only=True)
class OwnClasses(OwnRecipe):
    """A class-conditional pack."""

    pipeline = "ClassConditionalPixelPipeline"
    network = UNet2DModel

    def diffusion_task(self, data: LabelledImages) -> DenoisingTask:
        torch.manual_seed(self.diffusion.seed)
        return DiffusionTask(
            network=UNet2DModel(**self.unet),
            scheduler=self.scheduler(),
            pixel_unshuffle=self.pixel_unshuffle,
            augmentation=self.augmentation,
            min_snr=self.min_snr,
            null_label=len(self.labels),
            label_dropout=self.dropout,
        )

    @property
    def particulars(self) -> Mapping[str, Any]:
        return {"null_label": len(self.labels)}

    def sample_rows(self, pack: str) -> Sequence[Sequence[SampleSpec]]:
        """A row of the first classes without classifier-free guidance, and one with."""
        return [
            [
                SampleSpec(pack=pack, label=label, guidance=guidance, sampler=self.sampler, steps=25)
                for label in range(min(SHOWN, len(self.labels)))
            ]
            for guidance in (Guidance(), Guidance(free_scale=2.0))
        ]


@dataclass(frozen=True, kw_only=True)
class OwnCaptions(OwnRecipe):
    """A prompted pack; its styles are the classes, if there are any."""

    pipeline = PROMPTED_PIXELS
    network = UNet2DConditionModel

    def pictures(self, folder: Path) -> PromptedImages:
        return captioned(self.trained)

    def test_pictures(self) -> PromptedImages:
        return captioned(self.held_out)

    def diffusion_task(self, data: LabelledImages) -> DenoisingTask:
        assert isinstance(data, PromptedImages)
        torch.manual_seed(self.diffusion.seed)
        return PromptedTask(
            network=UNet2DConditionModel(**self.unet),
            scheduler=self.scheduler(),
            pixel_unshuffle=self.pixel_unshuffle,
            augmentation=self.augmentation,
            min_snr=self.min_snr,
            captions=data.captions,
            text_dropout=self.dropout,
            styled_share=0.0,
        )

    @property
    def particulars(self) -> Mapping[str, Any]:
        return {"text_encoder_package": ENCODER}

    def sample_rows(self, pack: str) -> Sequence[Sequence[SampleSpec]]:
        """A row of held-out captions without classifier-free guidance, and one with."""
        prompts = list(dict.fromkeys(texts_of(self.held_out)))[:SHOWN]
        return [
            [
                SampleSpec(pack=pack, prompt=prompt, guidance=guidance, sampler=self.sampler, steps=25)
                for prompt in prompts
            ]
            for guidance in (Guidance(), Guidance(free_scale=2.5))
        ]


def texts_of(pictures: Pictures) -> list[str]:
    """The caption of each picture, or its class's name."""
    named = [pictures.names[label] if pictures.names else "" for label in pictures.labels.tolist()]
    return [caption or name for caption, name in zip(pictures.captions, named, strict=True)]


def captioned(pictures: Pictures) -> PromptedImages:
    """The pictures with their encoded captions, each a concept of its own."""
    texts = texts_of(pictures)
    rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    encoder = SentenceEncoder(encoder_folder(ENCODER), torch.device("cpu"))
    known = list(rows)
    vectors = torch.cat([encoder.batch(known[start : start + 256]) for start in range(0, len(known), 256)])
    plain = torch.tensor([[rows[text]] for text in texts])
    captions = Captions(vectors=vectors, plain=plain, styled=plain[:, None].expand(-1, len(pictures.names), -1))
    return PromptedImages(pictures.images, pictures.labels, torch.arange(len(pictures)), captions)


def denoiser(size: Size, side: int, channels: int, *, classes: int, text: bool) -> dict[str, Any]:
    """Arguments of the denoiser for inputs (channels, side, side)."""
    common = {**size.blocks(side), "in_channels": channels, "out_channels": channels}
    if not text:
        return {**common, "num_class_embeds": classes + 1}
    levels = len(size.channels)
    return {
        **common,
        "down_block_types": ("DownBlock2D",) * levels,  # of this class, those with attention attend to text
        "up_block_types": ("UpBlock2D",) * levels,
        "mid_block_type": "UNetMidBlock2D",
        "cross_attention_dim": TEXT_SIZE,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": TEXT_SIZE + classes,
    }
