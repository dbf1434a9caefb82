"""The judge, a classifier of clean pictures used only for evaluation, and the reference data it compares with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from models.classifiers import Judge
from models.training.data import LabelledImages, mirrored
from models.training.loop import save_half


@dataclass
class JudgeTask:
    """Classify clean pictures, shifted by up to two pixels.

    Attributes:
        wears: whether pictures are also mirrored and degraded by `worn`.
    """

    network: Judge
    wears: bool = False

    def loss(self, batch: LabelledImages, generator: torch.Generator) -> Tensor:
        """Cross-entropy, mean over the batch."""
        shift = torch.randint(-2, 3, (2,), generator=generator, device=generator.device).tolist()
        pictures = batch.images.roll(shift, dims=(2, 3))
        if self.wears:
            pictures = worn(mirrored(pictures, 0.5, generator), generator)
        return functional.cross_entropy(self.network(pictures), batch.labels)

    def save(self, folder: Path) -> None:
        """Write `judge/`, with weights in half precision."""
        save_half(self.network, folder / "judge")


def worn(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Degrade `uint8` pictures (N,3,H,W) as a denoiser may: blur, lower or higher saturation, noise and blots. Float.

    This keeps a judge trained on real pictures from relying on perfect edges and uniform areas.
    """
    clean = pictures.float()

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand((len(clean), 1, 1, 1), generator=generator, device=generator.device)

    softened = functional.avg_pool2d(functional.pad(clean, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    blurred = torch.lerp(clean, softened, between(0.0, 0.5))
    grey = blurred.mean(1, keepdim=True)
    coloured = torch.lerp(grey, blurred, between(0.85, 1.2))
    noise = torch.randn(clean.shape, generator=generator, device=generator.device) * between(0.0, 10.0)
    small = (len(clean), clean.shape[1], clean.shape[2] // 4, clean.shape[3] // 4)
    coarse = torch.randn(small, generator=generator, device=generator.device)
    blots = functional.interpolate(coarse, scale_factor=4, mode="bilinear") * between(0.0, 12.0)
    return (coloured + noise + blots).clamp(0, 255)


@torch.inference_mode()
def save_reference(judge: Judge, test: LabelledImages, folder: Path) -> None:
    """Write the reference for evaluation: statistics of the judge's features of the real test pictures.

    `judge/reference.safetensors` holds the `features` (N, F) in half precision, `mean` (2, F) and `covariance`
    (2, F, F) of two random halves, and `recognised`, the share of the pictures that the judge classifies correctly.
    """
    judge.eval()
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    features = torch.cat([judge.features(part) for part in test.images.split(512)])
    halves = [features[part].double() for part in order.chunk(2)]
    accuracy = (judge.head(features).argmax(1) == test.labels).double().mean()
    save_file(
        {
            "features": features.half(),
            "mean": torch.stack([half.mean(0) for half in halves]),
            "covariance": torch.stack([half.T.cov() for half in halves]),
            "recognised": accuracy.reshape(1),
        },
        folder / "judge" / "reference.safetensors",
    )


@torch.inference_mode()
def save_pictures(
    judge: Judge,
    pictures: Tensor,
    *,
    names: Sequence[str],
    held_out: Sequence[tuple[int, int]],
    other_words: Mapping[str, Sequence[str]],
    folder: Path,
) -> None:
    """Write the reference for evaluating prompts: all real pictures, `uint8` (things, styles, 3, H, W).

    `judge/reference.safetensors` holds `pictures`, `held_out` (K, 2) and `recognised`, the share of the pictures whose
    style the judge classifies correctly. Its metadata holds, as JSON, the things' `names` and `other_words`: prompts
    that training lacked, with the names of the things that match them.
    """
    judge.eval()
    styles = torch.arange(pictures.shape[1]).repeat(len(pictures))
    accuracy = (judge(pictures.flatten(0, 1)).argmax(1) == styles).double().mean()
    save_file(
        {"pictures": pictures, "held_out": torch.tensor(held_out), "recognised": accuracy.reshape(1)},
        folder / "judge" / "reference.safetensors",
        metadata={"names": json.dumps(names), "other_words": json.dumps(other_words)},
    )
