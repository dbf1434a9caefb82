"""Folders of pictures and runs on them, as small as they can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from models.training.own.classifying import ClassifierRun
from models.training.own.finetuning import FinetuneRun
from models.training.own.folder import FolderRun

COLOURS = {"blue": (20, 40, 200), "green": (30, 190, 40), "red": (210, 30, 20)}


def write_pictures(folder: Path, *, count: int = 10, classes: tuple[str, ...] = tuple(COLOURS)) -> Path:
    """A folder for each class, of coloured noise in several sizes and formats."""
    chance = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise = chance.integers(-20, 20, (20 + number % 3, 24, 3))
            pixels = np.clip(np.array(COLOURS.get(name, (128, 128, 128))) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.{('png', 'jpg', 'webp')[number % 3]}")
    return folder


_COMMON: dict[str, Any] = {
    "steps": 2,
    "batch": 4,
    "rate": 1e-3,
    "accumulate": 1,
    "eval_every": None,
    "flip": False,
    "shift": False,
    "colour": 0.0,
    "fit": "crop",
    "seed": 0,
    "gpus": 1,
    "compile": False,
    "force": False,
}


def folder_run(data: Path, out: Path, **more: Any) -> FolderRun:
    """The options of `cynosure train folder` for a run of two steps."""
    own = {
        "size": "32",
        "preset": "tiny",
        "text": False,
        "schedule": "cosine",
        "min_snr": 5.0,
        "label_dropout": 0.1,
        "ema": 0.9,
        "license": "",
        "gradient_checkpointing": False,
    }
    return FolderRun(data=data, out=out, **{**_COMMON, **own, **more})


def classifier_run(pack: Path, data: Path, out: Path, **more: Any) -> ClassifierRun:
    """The options of `cynosure train classifier` for a run of two steps."""
    own = {"preset": "tiny", "start": "fresh", "robust": False}
    return ClassifierRun(pack=str(pack), data=data, out=out, **{**_COMMON, **own, **more})


def finetune_run(pack: Path, data: Path, out: Path, **more: Any) -> FinetuneRun:
    """The options of `cynosure train finetune` for a run of two steps."""
    own = {"min_snr": 5.0, "label_dropout": 0.1, "ema": 0.5, "gradient_checkpointing": False}
    return FinetuneRun(pack=str(pack), data=data, out=out, **{**_COMMON, **own, **more})
