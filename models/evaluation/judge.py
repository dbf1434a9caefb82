"""The judge: a classifier of clean pictures, independent of the one that guides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional

from models.training.data import LabelledImages, to_unit_range


class Judge(ModelMixin, ConfigMixin):
    """A plain convolutional network on clean pictures: it never sees noise, latents or timesteps."""

    @register_to_config
    def __init__(self, num_classes: int = 10, channels: tuple[int, ...] = (32, 64, 128), num_features: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for width in channels:
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
            before = width
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_features))
        self.head = nn.Sequential(nn.ReLU(), nn.Dropout(0.3), nn.Linear(num_features, num_classes))

    def features(self, pictures: Tensor) -> Tensor:
        """(N, num_features) for `uint8` pictures (N,1,H,W)."""
        return self.body(to_unit_range(pictures))

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits (N, num_classes) for `uint8` pictures (N,1,H,W)."""
        return self.head(self.features(pictures))


@dataclass
class JudgeTask:
    """Tell the class of clean pictures, shifted by up to two pixels."""

    network: Judge

    def loss(self, batch: LabelledImages, generator: torch.Generator) -> Tensor:
        """Cross-entropy, mean over the batch."""
        shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
        pictures = batch.images.roll(shift, dims=(2, 3))
        return functional.cross_entropy(self.network(pictures), batch.labels)

    def save(self, folder: Path) -> None:
        """Write `judge/`, the weights in half precision."""
        half = Judge.from_config(self.network.config)
        half.load_state_dict(self.network.state_dict())
        half.half().save_pretrained(folder / "judge")


def load_judge(pack_folder: Path) -> Judge:
    """The pack's judge in float32."""
    judge = Judge.from_pretrained(pack_folder / "judge", torch_dtype=torch.float32, local_files_only=True)
    return judge.eval().requires_grad_(False)
