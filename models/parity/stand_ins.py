"""Networks and inputs that both systems generate from a seed, so that only results need to be stored."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from models.noise import draw_noise

Network = TypeVar("Network", bound=nn.Module)
SHAPE = (3, 8, 8)
SEED = 5
LABELS = (1, 2)
TIMESTEPS = (0.0, 1.0, 499.0, 999.0, 12.5)
NUM_CLASSES = 4

UNETS: dict[str, dict[str, Any]] = {
    "new order of q, k, v": {"legacy_attention": False},
    "legacy order": {},
    "four heads": {"num_heads": 4, "num_head_channels": None},
    "channel_mult starts with 0.5": {"channel_mult": (0.5, 1, 2)},
    "super-resolution": {"low_res_size": 8},
    "no classes": {"num_classes": None},
    "convolutions resample": {"resblock_updown": False, "use_scale_shift_norm": False},
}
"""Small forms of the published configurations, named by the feature they test."""
_SMALL = {
    "image_size": 32,
    "model_channels": 64,
    "num_res_blocks": 1,
    "channel_mult": (1, 2, 2),
    "attention_resolutions": (16, 8),
    "num_classes": NUM_CLASSES,
    "num_head_channels": 32,
}


def unet_config(name: str) -> dict[str, Any]:
    """Arguments of `AdmUNet`."""
    return _SMALL | UNETS[name]


def classifier_config() -> dict[str, Any]:
    """Arguments of `AdmClassifier`."""
    return _SMALL


def filled(network: Network) -> Network:
    """Fill every parameter of `network` with seeded random values; zeros or small values would hide ordering bugs."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in sorted(network.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * 1.2 / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
    return network.eval()


def inputs(*shape: int, draw: int = 0) -> Tensor:
    """Seeded normal noise."""
    return draw_noise(SEED, 0, draw, shape)


def step_noise(draw: int) -> Tensor:
    """(2, *SHAPE): one step's noise for both rows, as the engine draws it; draw 0 is the initial noise."""
    return torch.stack([draw_noise(SEED, row, draw, SHAPE) for row in range(len(LABELS))])


def epsilon(x: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
    """A smooth, nonlinear noise prediction of moderate size; label `NUM_CLASSES` means "no label"."""
    offset = (0.001 * timesteps + 0.1 * labels)[:, None, None, None]
    return torch.tanh(0.7 * x + offset) - 0.2 * x.roll(1, dims=-1).clamp(-3, 3)


def variance_share(x: Tensor, timesteps: Tensor) -> Tensor:
    """The channels of a learned variance."""
    return torch.cos(x + 0.002 * timesteps[:, None, None, None])


class TinyClassifier(nn.Module):
    """Logits (B, NUM_CLASSES) of (B,*SHAPE)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(inputs(3 * 8 * 8, NUM_CLASSES, draw=9) * 0.2)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1)) @ self.weight + 0.001 * timesteps[:, None]
