"""An image classifier of transformers whose score is known: how bright a picture is."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

SIDE = 16
_STEEPNESS = 8.0


def write_small_classifier(folder: Path) -> Path:
    """Write a classifier with the labels `bright` and `dark` into a new folder."""
    config = ResNetConfig(
        embedding_size=1,
        hidden_sizes=[1],
        depths=[1],
        layer_type="basic",
        id2label={0: "bright", 1: "dark"},
        label2id={"bright": 0, "dark": 1},
    )
    model = ResNetForImageClassification(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.zero_()
            if "normalization.weight" in name or "shortcut" in name:
                weight.fill_(1.0)
            if "embedder.embedder.convolution" in name:  # an average of what a 7 × 7 window shows
                weight.fill_(1 / 147)
        head = model.classifier[1]
        head.weight[0], head.bias[0] = _STEEPNESS, -_STEEPNESS / 2
    model.save_pretrained(folder)
    ViTImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.0, 0.0, 0.0], image_std=[1.0, 1.0, 1.0]
    ).save_pretrained(folder)
    return folder
