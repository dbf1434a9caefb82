"""Converts published ADM checkpoints to packs.

Checkpoints are read with `weights_only=True`, so no code in the file is run, and must match the preset exactly.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin

from models.importing.errors import Unfit
from models.networks import AdmClassifier, AdmUNet

NUM_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published configuration (README of guided-diffusion, "Training models" and "Sampling").

    Attributes:
        unet, classifier: arguments of the networks; for some, no classifier was published.
        beta_schedule: its name in diffusers.
        defaults: serving defaults of the pack.
    """

    unet: Mapping[str, Any]
    classifier: Mapping[str, Any] | None = None
    beta_schedule: str = "linear"
    defaults: Mapping[str, Any] = field(default_factory=dict)


def _deep(size: int, **overrides: Any) -> dict[str, Any]:
    mults = {128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4), 512: (0.5, 1, 1, 2, 2, 4, 4)}
    shared = {"image_size": size, "model_channels": 256, "num_res_blocks": 2, "channel_mult": mults[size]}
    return shared | overrides


def _classifier(size: int, depth: int = 2) -> dict[str, Any]:
    mults = {64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4), 512: (0.5, 1, 1, 2, 2, 4, 4)}
    return {"image_size": size, "num_res_blocks": depth, "channel_mult": mults[size]}


PRESETS: Mapping[str, Preset] = {
    "imagenet64": Preset(
        unet={"image_size": 64, "legacy_attention": False},
        classifier=_classifier(64, depth=4),
        beta_schedule="squaredcos_cap_v2",
        defaults={"classifier_scale": 1.0},
    ),
    "imagenet128": Preset(
        unet=_deep(128, num_heads=4, num_head_channels=None),
        classifier=_classifier(128),
        defaults={"classifier_scale": 0.5},
    ),
    "imagenet256": Preset(unet=_deep(256), classifier=_classifier(256), defaults={"classifier_scale": 1.0}),
    "imagenet256-uncond": Preset(
        unet=_deep(256, num_classes=None), classifier=_classifier(256), defaults={"classifier_scale": 10.0}
    ),
    "imagenet512": Preset(unet=_deep(512), classifier=_classifier(512), defaults={"classifier_scale": 4.0}),
    "imagenet64-256": Preset(
        unet=_deep(256, model_channels=192, num_heads=4, num_head_channels=None, low_res_size=64),
    ),
    "imagenet128-512": Preset(
        unet=_deep(
            512,
            model_channels=192,
            channel_mult=(1, 1, 2, 2, 4, 4),
            attention_resolutions=(32, 16),
            low_res_size=128,
        ),
    ),
    "lsun256": Preset(unet=_deep(256, num_classes=None)),
}


def load_checkpoint(network: ModelMixin, path: Path) -> None:
    """Fill `network` from a published checkpoint.

    Raises:
        Unfit: the file is missing, holds more than tensors, or has other parameters.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise Unfit(f"{path} can't be read as a file of tensors: {str(error).splitlines()[0]}") from error
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        first = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise Unfit(f"{path} does not fit the preset: {first[:300]}") from error


def import_adm(
    diffusion: Path, out: Path, preset: Preset, *, classifier: Path | None = None, labels: list[str] | None = None
) -> None:
    """Write a pack folder: safetensors, configurations, `model_index.json`.

    Raises:
        Unfit: a checkpoint or the labels don't fit the preset.
    """
    if classifier is not None and preset.classifier is None:
        raise Unfit("this preset has no classifier")
    unet = AdmUNet(**preset.unet)
    num_classes = unet.config.num_classes or (NUM_CLASSES if classifier else 0)
    if labels is not None and len(labels) != num_classes:
        raise Unfit(f"{len(labels)} labels were given; the preset has {num_classes} classes")
    load_checkpoint(unet, diffusion)
    index: dict[str, Any] = {
        "_class_name": "AdmPipeline",
        "unet": ["models.networks", "AdmUNet"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "id2label": {str(number): name for number, name in enumerate(labels or map(str, range(num_classes)))},
        "cynosure": {"steps": 50, "sampler": "ddim", "profile": "adm", **preset.defaults},
    }
    unet.save_pretrained(out / "unet")
    if classifier is not None:
        network = AdmClassifier(**(preset.classifier or {}))
        load_checkpoint(network, classifier)
        network.save_pretrained(out / "classifier")
        index["classifier"] = ["models.networks", "AdmClassifier"]
    scheduler = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": preset.beta_schedule,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "prediction_type": "epsilon",
        "variance_type": "learned_range" if unet.config.learn_sigma else "fixed_large",
    }
    (out / "scheduler").mkdir(parents=True, exist_ok=True)
    (out / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2))
    (out / "model_index.json").write_text(json.dumps(index, indent=2))
