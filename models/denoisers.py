"""Denoisers: one small adapter a model family, from a spec to the network's input and from a latent to a picture."""

from __future__ import annotations

from typing import Protocol

import torch
from diffusers import UNet2DModel
from torch import Tensor
from torch.nn import functional

from models.loading import FLOAT32, InvalidPack, Pack, Precision, load_network


class Denoiser(Protocol):
    """What the engine needs of a model family.

    Attributes:
        latent_shape: (C, H, W) of what the network denoises.
        picture_size: (height, width) in pixels.
        prediction_type: "epsilon", "v_prediction" or "sample".
    """

    latent_shape: tuple[int, int, int]
    picture_size: tuple[int, int]
    prediction_type: str
    num_parameters: int

    def forward(self, x: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """The network's output, float32 (B,C,H,W), for `x` (B,C,H,W), `timesteps` (B,), `labels` (B,); -1: no label."""

    def decode(self, x: Tensor) -> Tensor:
        """Latents (B,C,H,W) to `uint8` pictures (B,H,W,C)."""


class UNet2DDenoiser:
    """`diffusers.UNet2DModel` on pixels, folded into channels by `pixel_unshuffle`; the last class is "no label"."""

    def __init__(
        self, network: UNet2DModel, *, pixel_unshuffle: int, prediction_type: str, null_label: int | None
    ) -> None:
        self.network = network
        self.pixel_unshuffle = pixel_unshuffle
        self.prediction_type = prediction_type
        self.null_label = null_label
        side = int(network.config.sample_size)
        self.latent_shape = (int(network.config.in_channels), side, side)
        self.picture_size = (side * pixel_unshuffle, side * pixel_unshuffle)
        self.num_parameters = sum(parameter.numel() for parameter in network.parameters())

    @torch.inference_mode()
    def forward(self, x: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        x = x.to(self.network.dtype)
        if self.null_label is None:
            return self.network(x, timesteps).sample.float()
        labels = torch.where(labels < 0, self.null_label, labels)
        return self.network(x, timesteps, class_labels=labels).sample.float()

    @torch.inference_mode()
    def decode(self, x: Tensor) -> Tensor:
        pictures = functional.pixel_shuffle(x, self.pixel_unshuffle)
        return ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def load_denoiser(pack: Pack, device: torch.device, precision: Precision = FLOAT32) -> Denoiser:
    """Load the pack's denoiser.

    Raises:
        InvalidPack: the pack's family is not served.
    """
    kind = pack.index.get("unet", [None, None])[1]
    if kind != "UNet2DModel":
        raise InvalidPack(f"pack '{pack.name}' has unet {kind}; served: UNet2DModel")
    return UNet2DDenoiser(
        load_network(UNet2DModel, pack.component("unet"), device, precision),
        pixel_unshuffle=int(pack.index.get("pixel_unshuffle", 1)),
        prediction_type=str(pack.scheduler_config["prediction_type"]),
        null_label=pack.index.get("null_label"),
    )
