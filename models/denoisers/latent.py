"""Code shared by families with a variational autoencoder (Rombach et al. 2022)."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from models.loading import load_network
from models.pack import Pack


class Autoencoder:
    """Converts between latents and pixels, one picture at a time and in float32: half precision overflows for XL."""

    def __init__(self, pack: Pack, device: torch.device) -> None:
        self.network = load_network(AutoencoderKL, pack.component("vae"), device)
        config = self.network.config
        self.scale = float(config.scaling_factor)
        self.shift = float(config.shift_factor or 0.0)
        self.channels = int(config.latent_channels)
        self.factor = 2 ** (len(config.block_out_channels) - 1)

    @torch.inference_mode()
    def decode(self, x: Tensor) -> Tensor:
        return torch.cat([self.network.decode(latent[None] / self.scale + self.shift).sample for latent in x])

    @torch.inference_mode()
    def encode(self, pictures: Tensor) -> Tensor:
        """Encode to the latents' means, so that image-to-image is deterministic."""
        means = torch.cat([self.network.encode(picture[None]).latent_dist.mode() for picture in pictures])
        return (means - self.shift) * self.scale

    def encode_mask(self, mask: Tensor) -> Tensor:
        return functional.interpolate(mask, scale_factor=1 / self.factor, mode="nearest")


class LatentPictures:
    """Base of denoisers that work on an autoencoder's latents (channels, side, side)."""

    def __init__(self, pack: Pack, device: torch.device, side: int) -> None:
        self.autoencoder = Autoencoder(pack, device)
        self.latent_shape = (self.autoencoder.channels, side, side)
        self.picture_size = (side * self.autoencoder.factor, side * self.autoencoder.factor)

    def decode(self, x: Tensor) -> Tensor:
        return self.autoencoder.decode(x)

    def encode(self, pictures: Tensor) -> Tensor:
        return self.autoencoder.encode(pictures)

    def encode_mask(self, mask: Tensor) -> Tensor:
        return self.autoencoder.encode_mask(mask)
