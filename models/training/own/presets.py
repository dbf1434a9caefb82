"""Sizes of the networks that are trained on a user's pictures, and the runs that suit them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.command_line import Preset
from models.training.loop import LoopConfig

HEAD = 32  # channels of an attention head


@dataclass(frozen=True, kw_only=True)
class Size:
    """A preset.

    Attributes:
        side: most rows of the denoiser's input; pixels of larger pictures fold into channels.
        channels: by level, each of half the side.
        layers: residual blocks a level.
        attends_to: levels of at most this side have attention.
        classifier_channels: likewise, of the classifier.
        steps, batch, rate: of the denoiser's run.
        classifier_steps: of the classifier's run.
        judge_steps: of the judge's run.
    """

    side: int
    channels: tuple[int, ...]
    layers: int
    attends_to: int
    classifier_channels: tuple[int, ...]
    steps: int
    batch: int
    rate: float
    classifier_steps: int
    judge_steps: int

    def folding(self, size: int) -> int:
        """The factor by which blocks of pixels of `size`x`size` pictures fold into channels."""
        return max(1, size // self.side)

    def blocks(self, side: int) -> dict[str, Any]:
        """The denoiser's levels, for an input of this side, as both of diffusers' UNets take them."""
        attends = [side >> level <= self.attends_to for level in range(len(self.channels))]
        return {
            "sample_size": side,
            "layers_per_block": self.layers,
            "block_out_channels": self.channels,
            "down_block_types": tuple("AttnDownBlock2D" if one else "DownBlock2D" for one in attends),
            "up_block_types": tuple("AttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attends)),
            "attention_head_dim": HEAD,
            "resnet_time_scale_shift": "scale_shift",
        }

    def classifier(self, side: int, channels: int, num_classes: int) -> dict[str, Any]:
        """Arguments of a `NoiseAwareClassifier` for inputs (channels, side, side)."""
        levels = self.classifier_channels
        while side % 2 ** (len(levels) - 1):
            levels = levels[:-1]
        return {
            "sample_size": side,
            "in_channels": channels,
            "num_classes": num_classes,
            "block_out_channels": levels,
            "down_block_types": tuple(
                "AttnDownBlock2D" if side >> level <= self.attends_to else "DownBlock2D" for level in range(len(levels))
            ),
            "layers_per_block": self.layers,
            "attention_head_dim": HEAD,
        }


PRESETS: Mapping[Preset, Size] = {
    "tiny": Size(
        side=16,
        channels=(64, 128),
        layers=1,
        attends_to=8,
        classifier_channels=(64, 128),
        steps=4_000,
        batch=64,
        rate=8e-4,
        classifier_steps=2_000,
        judge_steps=1_000,
    ),
    "small": Size(
        side=32,
        channels=(96, 192, 288),
        layers=2,
        attends_to=16,
        classifier_channels=(64, 128, 192),
        steps=50_000,
        batch=128,
        rate=4e-4,
        classifier_steps=15_000,
        judge_steps=3_000,
    ),
    "base": Size(
        side=64,
        channels=(128, 256, 256, 384),
        layers=2,
        attends_to=16,
        classifier_channels=(96, 192, 192, 288),
        steps=200_000,
        batch=256,
        rate=2e-4,
        classifier_steps=40_000,
        judge_steps=5_000,
    ),
}


def judge_channels(size: int) -> tuple[int, ...]:
    """Channels of a judge of pictures of this size, so that it takes about as long for all sizes."""
    channels: tuple[int, ...] = (32, 64, 128)
    while size > 32:
        channels = (max(8, channels[0] // 2), *channels)
        size //= 2
    return channels


def run_of(
    *,
    steps: int,
    batch: int,
    rate: float,
    ema: float,
    seed: int,
    accumulate: int = 1,
    every: int | None = None,
    weight_decay: float = 0.01,
) -> LoopConfig:
    """A run that warms up over 200 steps, and whose rate falls to zero over its last third."""
    return LoopConfig(
        steps=steps,
        batch_size=batch,
        learning_rate=rate,
        warmup_steps=200,
        decay_fraction=0.33,
        weight_decay=weight_decay,
        ema_decay=ema,
        seed=seed,
        accumulate=accumulate,
        checkpoint_every=every or max(500, steps // 10),
    )
