"""The training recipe of a pixel-space pack: its data, networks and training runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers import DDPMScheduler
from PIL import Image

from models.calibration.result import fixed_calibration
from models.classifiers import Judge, NoiseAwareClassifier
from models.engine import Engine
from models.spec import SampleSpec
from models.training.classifier import ClassifierTask
from models.training.data import LabelledImages
from models.training.diffusion import Schedule
from models.training.judge import JudgeTask
from models.training.loop import LoopConfig, Task


@dataclass(frozen=True, kw_only=True)
class PixelRecipe(ABC):
    """A pack that denoises pixels, with a noise-aware classifier over its labels.

    Attributes:
        labels: the classifier's classes.
        pixel_unshuffle: factor by which H and W fold into channels.
        prediction_type: what the denoiser predicts.
        unet, classifier: constructor arguments of the networks.
        diffusion, classifying, judging: the three training runs.
        serving: the pack's serving defaults, for `model_index.json`.
        pictures_from: the option that names their folder: `data` is only read, a `cache` is filled.
        data_folder: default folder of the training pictures.
        judge_wears: `wears` of `JudgeTask`.
    """

    pipeline: ClassVar[str]
    network: ClassVar[type[Any]]
    pictures_from: ClassVar[Literal["data", "cache"]] = "data"

    labels: tuple[str, ...]
    pixel_unshuffle: int
    prediction_type: str
    unet: Mapping[str, Any]
    classifier: Mapping[str, Any]
    diffusion: LoopConfig
    classifying: LoopConfig
    judging: LoopConfig
    serving: Mapping[str, Any]
    data_folder: Path
    judge_wears: bool = False

    @abstractmethod
    def pictures(self, folder: Path) -> LabelledImages:
        """Load the training pictures from a folder, after fetching them if the recipe can.

        Raises:
            MissingData: they are missing; the message says how to get them.
        """

    def classifier_pictures(self, folder: Path) -> LabelledImages:
        """Load the noise-aware classifier's training pictures; errors are those of `pictures`."""
        return self.pictures(folder)

    def judge_pictures(self, folder: Path) -> LabelledImages:
        """Load the judge's training pictures; errors are those of `pictures`."""
        return self.pictures(folder)

    @abstractmethod
    def diffusion_task(self, data: LabelledImages) -> Task:
        """Create a new denoiser and its loss."""

    @abstractmethod
    def sample_rows(self, pack: str) -> Sequence[Sequence[SampleSpec]]:
        """Specs of the pictures drawn at every checkpoint, row by row."""

    @abstractmethod
    def save_reference(self, data_folder: Path, folder: Path) -> None:
        """Write evaluation's reference, `judge/reference.safetensors`, to the pack's folder.

        Raises:
            MissingData: as for `pictures`.
        """

    @property
    @abstractmethod
    def particulars(self) -> Mapping[str, Any]:
        """Entries of `model_index.json` that only this kind of pack has."""

    def scheduler(self) -> DDPMScheduler:
        return DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=self.prediction_type, clip_sample=True)

    def classifier_task(self, data: LabelledImages, folder: Path) -> ClassifierTask:
        """Create a new classifier and its loss, for a pack in `folder` whose denoiser is trained."""
        torch.manual_seed(self.classifying.seed)
        return ClassifierTask(
            network=NoiseAwareClassifier(**self.classifier),
            schedule=Schedule.of_scheduler(self.scheduler()),
            pixel_unshuffle=self.pixel_unshuffle,
        )

    def judge_task(self) -> JudgeTask:
        torch.manual_seed(self.judging.seed)
        channels = self.unet["in_channels"] // self.pixel_unshuffle**2
        network = Judge(num_classes=len(self.labels), in_channels=channels)
        return JudgeTask(network=network, wears=self.judge_wears)

    def model_index(self, *, with_classifier: bool) -> dict[str, Any]:
        """Contents of `model_index.json`."""
        classifier = {"classifier": ["models.classifiers", "NoiseAwareClassifier"]} if with_classifier else {}
        return {
            "_class_name": self.pipeline,
            "unet": ["diffusers", self.network.__name__],
            "scheduler": ["diffusers", type(self.scheduler()).__name__],
            **classifier,
            "pixel_unshuffle": self.pixel_unshuffle,
            **self.particulars,
            "id2label": {str(index): name for index, name in enumerate(self.labels)},
            "cynosure": dict(self.serving),
        }


def save_sample_grid(folder: Path, recipe: PixelRecipe, step: int, *, device: str = "cpu") -> None:
    """Draw the recipe's sample rows with the pack's weights after `step` optimiser steps, and save them as a grid.

    A network that has hardly learned, as in a try of a few steps, draws in no more steps than it has learned for.
    """
    pack = str(folder.resolve())  # by path, because a bundled pack may have the folder's name
    # The weights change at every checkpoint, so measuring would never pay off.
    with Engine([pack], device=device, precision="float32", calibrate=fixed_calibration) as engine:
        [(name, loaded)] = engine.packs.items()
        height, width = loaded.denoiser.picture_size
        rows = recipe.sample_rows(name)
        pictures = iter(engine.generate([replace(spec, steps=min(spec.steps, step)) for row in rows for spec in row]))
    grid = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)))
    for top, row in enumerate(rows):
        for left, _ in enumerate(row):
            picture = next(pictures).squeeze()
            grid.paste(Image.fromarray(picture), (left * width, top * height))
    path = folder / "training" / "samples" / f"{step:06d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)
