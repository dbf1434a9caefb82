"""Code shared by families that denoise pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from models.adapters import AdapterBase, Adapters, ImagePrompts
from models.denoisers.base import BatchedEncoder, Sizes
from models.networks.tokens import Readings
from models.spec import PromptOptions, SampleSpec


class FoldedPixels:
    """Base of denoisers that fold blocks of `pixel_unshuffle` by `pixel_unshuffle` pixels into channels.

    Args:
        channels, side: of the latents (channels, side, side).
        pixel_unshuffle: the factor; 1 for unfolded pixels.
    """

    prompt_options = PromptOptions()
    default_scale = 3.0
    takes_size_conditioning = False
    patch = 1
    encoders: Sequence[BatchedEncoder] = ()
    has_autoencoder = False
    adapter_base: AdapterBase | None = None
    adapters: Adapters | None = None
    image_prompts: ImagePrompts | None = None
    has_deep_blocks = False

    def __init__(self, channels: int, side: int, pixel_unshuffle: int) -> None:
        self.pixel_unshuffle = pixel_unshuffle
        self.latent_shape = (channels, side, side)
        self.picture_size = (side * pixel_unshuffle, side * pixel_unshuffle)
        self.sizes = Sizes.only(*self.picture_size)

    @torch.inference_mode()
    def decode(self, x: Tensor) -> Tensor:
        return functional.pixel_shuffle(x, self.pixel_unshuffle)

    @torch.inference_mode()
    def encode(self, pictures: Tensor) -> Tensor:
        return functional.pixel_unshuffle(pictures, self.pixel_unshuffle)

    def encode_prompts(self, specs: Sequence[SampleSpec]) -> None:
        pass

    def readings(self, spec: SampleSpec) -> Readings:
        return {}

    def encode_mask(self, mask: Tensor) -> Tensor:
        channels = self.latent_shape[0] // self.pixel_unshuffle**2
        return self.encode(mask.expand(-1, channels, -1, -1))
