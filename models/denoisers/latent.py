"""Code shared by families with a variational autoencoder (Rombach et al. 2022)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from models.adapters import AdapterBase, Adapters, ImagePrompts
from models.configs import Keys
from models.configs.networks import AUTOENCODER
from models.denoisers.base import BatchedEncoder, Sizes
from models.memory import autoencoder_precision, load_shared
from models.networks.tokens import Readings
from models.pack import InvalidPack, Pack
from models.precision import Precision
from models.spec import PromptOptions, SampleSpec
from models.weights import turn


def distilled_guidance(pack: Pack, default: float, *, is_input: bool) -> float:
    """The scale that a guidance-distilled network takes as an input: the pack's `distilled_guidance`, or the default.

    Raises:
        InvalidPack: the pack sets one, and its network takes none.
    """
    if "distilled_guidance" in pack.defaults and not is_input:
        raise InvalidPack(
            f"{pack.folder / 'model_index.json'}: cynosure.distilled_guidance is set, and the {pack.family} takes no "
            "guidance scale as an input; leave it out"
        )
    return float(pack.defaults.get("distilled_guidance", default))


SDXL_SHAPES = tuple(
    (high / 1024, wide / 1024)
    for sides in ((1024, 1024), (896, 1152), (832, 1216), (768, 1344), (640, 1536))
    for high, wide in dict.fromkeys((sides, sides[::-1]))
)
"""Shapes of a million pixels that SDXL was trained on (Podell et al. 2023, appendix I), as factors of 1024."""
MAX_PIXELS_AT_ONCE = 2048**2
"""Larger pictures are encoded and decoded in tiles: Stable Diffusion takes 3 KB a pixel in float32."""


class Autoencoder:
    """Converts between float32 latents and pixels; packs with the same one share its weights."""

    def __init__(self, pack: Pack, device: torch.device, precision: Precision, keys: Keys) -> None:
        self.network = load_shared(
            AutoencoderKL, pack, "vae", device, autoencoder_precision(pack, precision), keys=keys
        )
        self._in_tiles = copy.copy(self.network)  # of the same modules: others use the network as it is
        self._in_tiles.enable_tiling()
        config = self.network.config
        self.scale = float(config.scaling_factor)
        self.shift: float | Tensor = float(config.shift_factor or 0.0)
        self.spread: float | Tensor = 1.0
        if config.latents_mean is not None and config.latents_std is not None:
            self.shift, self.spread = (
                torch.tensor(values, device=device).view(-1, 1, 1)
                for values in (config.latents_mean, config.latents_std)
            )
        self.channels = int(config.latent_channels)
        self.factor = 2 ** (len(config.block_out_channels) - 1)

    @torch.inference_mode()
    def decode(self, x: Tensor) -> Tensor:
        latents = (x * self.spread / self.scale + self.shift).to(self.network.dtype)
        with turn(self.network):
            if self._is_large(x.shape[-2] * x.shape[-1] * self.factor**2):
                return torch.cat([self._in_tiles.decode(latent[None]).sample for latent in latents]).float()
            return self.network.decode(latents).sample.float()

    @torch.inference_mode()
    def encode(self, pictures: Tensor) -> Tensor:
        """Encode to the latents' means, so that image-to-image is deterministic; one picture at a time."""
        network = self._in_tiles if self._is_large(pictures.shape[-2] * pictures.shape[-1]) else self.network
        given = pictures.to(self.network.dtype)
        with turn(self.network):
            means = torch.cat([network.encode(picture[None]).latent_dist.mode() for picture in given]).float()
        return (means - self.shift) * self.scale / self.spread

    def _is_large(self, pixels: int) -> bool:
        return pixels > MAX_PIXELS_AT_ONCE

    def encode_mask(self, mask: Tensor) -> Tensor:
        return functional.interpolate(mask, scale_factor=1 / self.factor, mode="nearest")


class LatentPictures:
    """Base of denoisers that work on an autoencoder's latents (channels, height, width), of one size.

    Args:
        pack: the folder.
        device: where its autoencoder runs.
        size: of the latents: (height, width), or the side of a square, as a network's `sample_size` is.
        channels: of the latents that the network denoises.
        precision: of that network, which says in which format the autoencoder runs.
        keys: what the autoencoder's config.json may hold.

    Raises:
        InvalidPack: no size, or an autoencoder with other latents; as for `load_component`.
    """

    prompt_options = PromptOptions()
    patch = 1
    takes_size_conditioning = False
    encoders: Sequence[BatchedEncoder] = ()
    has_autoencoder = True
    adapter_base: AdapterBase | None = None
    adapters: Adapters | None = None
    image_prompts: ImagePrompts | None = None
    has_deep_blocks = False

    def __init__(
        self,
        pack: Pack,
        device: torch.device,
        size: int | Sequence[int] | None,
        channels: int,
        precision: Precision,
        keys: Keys = AUTOENCODER,
    ) -> None:
        self.autoencoder = Autoencoder(pack, device, precision, keys)
        if size is None:
            raise InvalidPack(
                f"{pack.folder}: the config.json of its network has no sample_size; add it: the side of the latents"
            )
        if channels != self.autoencoder.channels:
            raise InvalidPack(
                f"{pack.folder}: its {pack.family} denoises {channels} channels, and the latents of its vae have "
                f"{self.autoencoder.channels} (latent_channels)"
            )
        height, width = (size, size) if isinstance(size, int) else size
        self.latent_shape = (self.autoencoder.channels, height, width)
        self.picture_size = (height * self.autoencoder.factor, width * self.autoencoder.factor)
        self.sizes = Sizes.only(*self.picture_size)

    def decode(self, x: Tensor) -> Tensor:
        return self.autoencoder.decode(x)

    def encode(self, pictures: Tensor) -> Tensor:
        return self.autoencoder.encode(pictures)

    def encode_mask(self, mask: Tensor) -> Tensor:
        return self.autoencoder.encode_mask(mask)

    def encode_prompts(self, specs: Sequence[SampleSpec]) -> None:
        pass

    def readings(self, spec: SampleSpec) -> Readings:
        return {}
