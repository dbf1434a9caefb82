"""The training recipes, with the hyperparameters behind the packs' weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel

from models.classifiers import load_judge
from models.pack import open_pack
from models.spec import Guidance, SampleSpec
from models.training.data import FASHION_LABELS, FASHION_MNIST_FOLDER, LabelledImages, load_fashion_mnist
from models.training.diffusion import DiffusionTask
from models.training.emoji_recipe import EMOJI
from models.training.judge import save_reference
from models.training.loop import LoopConfig
from models.training.recipe import PixelRecipe


@dataclass(frozen=True, kw_only=True)
class ClassRecipe(PixelRecipe):
    """Recipe of a class-conditional pack.

    Attributes:
        label_dropout: share of pictures trained without their label.
        load, load_test: read the training and the held-out pictures from a folder.
    """

    pipeline = "ClassConditionalPixelPipeline"
    network = UNet2DModel

    label_dropout: float
    load: Callable[[Path], LabelledImages]
    load_test: Callable[[Path], LabelledImages]

    def pictures(self, folder: Path) -> LabelledImages:
        return self.load(folder)

    def diffusion_task(self, data: LabelledImages) -> DiffusionTask:
        torch.manual_seed(self.diffusion.seed)
        return DiffusionTask(
            network=UNet2DModel(**self.unet),
            scheduler=self.scheduler(),
            pixel_unshuffle=self.pixel_unshuffle,
            null_label=len(self.labels),
            label_dropout=self.label_dropout,
        )

    def save_reference(self, data_folder: Path, folder: Path) -> None:
        save_reference(load_judge(open_pack(str(folder.resolve()))), self.load_test(data_folder), folder)

    @property
    def particulars(self) -> Mapping[str, Any]:
        return {"null_label": len(self.labels)}

    def sample_rows(self, pack: str) -> Sequence[Sequence[SampleSpec]]:
        """A row of all classes without classifier-free guidance, and one with."""
        return [
            [
                SampleSpec(pack=pack, label=label, guidance=guidance, steps=25, seed=0)
                for label in range(len(self.labels))
            ]
            for guidance in (Guidance(), Guidance(free_scale=3.0))
        ]


def _load_fashion(folder: Path) -> LabelledImages:
    return load_fashion_mnist("train", folder)


def _load_fashion_test(folder: Path) -> LabelledImages:
    return load_fashion_mnist("t10k", folder)


RECIPES: Mapping[str, PixelRecipe] = {
    "emoji": EMOJI,
    "fashion": ClassRecipe(
        labels=FASHION_LABELS,
        pixel_unshuffle=2,
        prediction_type="v_prediction",
        label_dropout=0.1,
        unet={
            "sample_size": 14,
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 1,
            "block_out_channels": (96, 160),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 32,
            "num_class_embeds": len(FASHION_LABELS) + 1,
            "resnet_time_scale_shift": "scale_shift",
        },
        classifier={"sample_size": 14, "in_channels": 4, "num_classes": len(FASHION_LABELS)},
        diffusion=LoopConfig(
            steps=13_500,
            batch_size=64,
            learning_rate=5e-4,
            warmup_steps=200,
            decay_fraction=0.074,
            weight_decay=0.01,
            ema_decay=0.9985,
            seed=0,
            checkpoint_every=250,
        ),
        classifying=LoopConfig(
            steps=6_000,
            batch_size=64,
            learning_rate=1e-3,
            warmup_steps=100,
            decay_fraction=0.5,
            weight_decay=0.05,
            ema_decay=0.998,
            seed=1,
            checkpoint_every=500,
        ),
        judging=LoopConfig(
            steps=3_000,
            batch_size=128,
            learning_rate=1.5e-3,
            warmup_steps=100,
            decay_fraction=0.7,
            weight_decay=0.05,
            ema_decay=0.998,
            seed=2,
        ),
        serving={
            "title": "Fashion-MNIST, class-conditional, 28x28 grey",
            "license": "mit",
            "sampler": "ddim",
            "steps": 50,
            "guidance_scale": 3.0,
            "classifier_scale": 5.0,
        },
        data_folder=FASHION_MNIST_FOLDER,
        load=_load_fashion,
        load_test=_load_fashion_test,
    ),
}
