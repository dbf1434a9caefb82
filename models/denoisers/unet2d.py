"""`diffusers.UNet2DModel` on pixels."""

from __future__ import annotations

import torch
from diffusers import UNet2DModel
from torch import Tensor
from torch.nn import functional

from models.denoisers.base import Conditioning
from models.loading import Pack, Precision, load_network
from models.spec import SampleSpec


class UNet2DDenoiser:
    """Pixels folded into channels by `pixel_unshuffle`; the last class is "no label"."""

    takes_prompt = False
    sees_mask = False
    low_res_size: int | None = None
    learns_variance = False

    def __init__(self, pack: Pack, device: torch.device, precision: Precision) -> None:
        self.network = load_network(UNet2DModel, pack.component("unet"), device, precision)
        self.pixel_unshuffle = int(pack.index.get("pixel_unshuffle", 1))
        self.prediction_type = str(pack.scheduler_config["prediction_type"])
        self.null_label: int | None = pack.index.get("null_label")
        self.has_classes = bool(pack.labels)
        self.has_null = self.null_label is not None or not self.has_classes
        side = int(self.network.config.sample_size)
        self.latent_shape = (int(self.network.config.in_channels), side, side)
        self.picture_size = (side * self.pixel_unshuffle, side * self.pixel_unshuffle)
        self.num_parameters = sum(parameter.numel() for parameter in self.network.parameters())

    def conditioning(self, spec: SampleSpec) -> tuple[Conditioning, Conditioning]:
        null = 0 if self.null_label is None else self.null_label
        label = null if spec.label is None else spec.label
        return {"labels": torch.tensor(label)}, {"labels": torch.tensor(null)}

    @torch.inference_mode()
    def forward(self, x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        labels = conditioning["labels"] if self.has_classes else None
        return self.network(x.to(self.network.dtype), timesteps, class_labels=labels).sample.float()

    @torch.inference_mode()
    def decode(self, x: Tensor) -> Tensor:
        return functional.pixel_shuffle(x, self.pixel_unshuffle)

    @torch.inference_mode()
    def encode(self, pictures: Tensor) -> Tensor:
        return functional.pixel_unshuffle(pictures, self.pixel_unshuffle)

    def encode_mask(self, mask: Tensor) -> Tensor:
        channels = self.latent_shape[0] // self.pixel_unshuffle**2
        return self.encode(mask.expand(-1, channels, -1, -1))
