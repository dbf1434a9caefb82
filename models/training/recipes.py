"""What is trained for each bundled pack, and how: the numbers behind the committed weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import DDPMScheduler, UNet2DModel

from models.classifiers import Judge, NoiseAwareClassifier
from models.spec import Guidance, SampleSpec
from models.training.classifier import ClassifierTask
from models.training.data import FASHION_LABELS, FASHION_MNIST_FOLDER, LabelledImages, load_fashion_mnist
from models.training.diffusion import DiffusionTask
from models.training.emoji_recipe import EmojiRecipe
from models.training.judge import JudgeTask
from models.training.loop import LoopConfig, Task


class Recipe(Protocol):
    """Everything that decides a pack: its data, its networks, and how long each learns."""

    @property
    def data_folder(self) -> Path: ...

    @property
    def diffusion(self) -> LoopConfig: ...

    @property
    def classifying(self) -> LoopConfig: ...

    @property
    def load(self) -> Callable[[Path], LabelledImages]:
        """Reads the training pictures from a folder, fetching them into it where it can."""

    def diffusion_task(self, data: LabelledImages) -> Task: ...

    def classifier_task(self) -> Task: ...

    def model_index(self, *, with_classifier: bool) -> dict[str, Any]:
        """Contents of `model_index.json`."""

    def sample_rows(self, pack: str) -> Sequence[Sequence[SampleSpec]]:
        """What is drawn at every checkpoint, row by row."""


@dataclass(frozen=True, kw_only=True)
class ClassRecipe:
    """A pack of classes.

    Attributes:
        pixel_unshuffle: factor by which H and W fold into channels.
        label_dropout: share of pictures trained without their label.
        unet, classifier: constructor arguments of the networks.
        diffusion, classifying, judging: the three training runs.
        serving: the pack's defaults, as `model_index.json` keeps them.
        load, load_test: read the training and the held-out pictures from a folder.
    """

    labels: tuple[str, ...]
    pixel_unshuffle: int
    prediction_type: str
    label_dropout: float
    unet: Mapping[str, Any]
    classifier: Mapping[str, Any]
    diffusion: LoopConfig
    classifying: LoopConfig
    judging: LoopConfig
    serving: Mapping[str, Any]
    data_folder: Path
    load: Callable[[Path], LabelledImages]
    load_test: Callable[[Path], LabelledImages]

    def scheduler(self) -> DDPMScheduler:
        return DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=self.prediction_type, clip_sample=True)

    def diffusion_task(self, data: LabelledImages) -> DiffusionTask:
        torch.manual_seed(self.diffusion.seed)
        return DiffusionTask(
            network=UNet2DModel(**self.unet),
            scheduler=self.scheduler(),
            pixel_unshuffle=self.pixel_unshuffle,
            null_label=len(self.labels),
            label_dropout=self.label_dropout,
        )

    def classifier_task(self) -> ClassifierTask:
        torch.manual_seed(self.classifying.seed)
        return ClassifierTask(
            network=NoiseAwareClassifier(**self.classifier),
            scheduler=self.scheduler(),
            pixel_unshuffle=self.pixel_unshuffle,
        )

    def judge_task(self) -> JudgeTask:
        torch.manual_seed(self.judging.seed)
        return JudgeTask(network=Judge(num_classes=len(self.labels)))

    def model_index(self, *, with_classifier: bool) -> dict[str, Any]:
        """Contents of `model_index.json`."""
        classifier = {"classifier": ["models.classifiers", "NoiseAwareClassifier"]} if with_classifier else {}
        return {
            "_class_name": "ClassConditionalPixelPipeline",
            "unet": ["diffusers", "UNet2DModel"],
            "scheduler": ["diffusers", "DDPMScheduler"],
            **classifier,
            "pixel_unshuffle": self.pixel_unshuffle,
            "null_label": len(self.labels),
            "id2label": {str(index): name for index, name in enumerate(self.labels)},
            "cynosure": dict(self.serving),
        }

    def sample_rows(self, pack: str) -> Sequence[Sequence[SampleSpec]]:
        """Every class without and with classifier-free guidance."""
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


RECIPES: Mapping[str, Recipe] = {
    "emoji": EmojiRecipe(),
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
