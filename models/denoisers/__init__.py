"""Denoisers: one small adapter per model family."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping

import torch

from models.adapters import rows_in_batch
from models.caching import make_reusable
from models.configs import check_index
from models.denoisers.base import BatchedEncoder, Conditioning, Denoiser, Sizes, latent_shape_of
from models.loading import with_float32_mode
from models.pack import InvalidPack, Pack
from models.passes.graphs import Graphs, may_be_recorded
from models.precision import FLOAT32, Precision

FAMILIES: Mapping[str, str] = {
    "UNet2DModel": "models.denoisers.unet2d:UNet2DDenoiser",
    "AdmUNet": "models.denoisers.adm:AdmDenoiser",
    "DiTTransformer2DModel": "models.denoisers.dit:DiTDenoiser",
    "Transformer2DModel": "models.denoisers.dit:DiTDenoiser",  # DiT's class name before diffusers 0.30
    "UNet2DConditionModel": "models.denoisers.stable_diffusion:StableDiffusionDenoiser",
    "PromptedPixelPipeline": "models.denoisers.prompted:PromptedPixelDenoiser",
    "FluxTransformer2DModel": "models.denoisers.flux:FluxDenoiser",
    "SD3Transformer2DModel": "models.denoisers.stable_diffusion_3:StableDiffusion3Denoiser",
}
"""Adapters by the class of their pipeline or network in `model_index.json`. They are given by name and imported when
needed, because text families import transformers, which takes seconds."""


def load_denoiser(pack: Pack, device: torch.device, precision: Precision = FLOAT32) -> Denoiser:
    """Load the pack's denoiser.

    Raises:
        InvalidPack: the pack's family is not served, or a key of its configuration; as for the family's parts.
    """
    if pack.family not in FAMILIES:
        raise InvalidPack(f"pack '{pack.name}' has a {pack.family}; served: {', '.join(FAMILIES)}")
    check_index(pack)
    loaded = pkgutil.resolve_name(FAMILIES[pack.family])(pack, device, precision)
    loaded.has_deep_blocks = not precision.compiled and make_reusable(loaded.network)
    denoiser: Denoiser = loaded
    with_float32_mode(denoiser, device, forward=precision, decode=FLOAT32, encode=FLOAT32)
    if may_be_recorded(device, precision, denoiser.num_parameters):
        graphs = Graphs(denoiser.forward, is_plain=lambda: not rows_in_batch())
        denoiser.forward = graphs  # type: ignore[method-assign]
    return denoiser


__all__ = ["FAMILIES", "BatchedEncoder", "Conditioning", "Denoiser", "Sizes", "latent_shape_of", "load_denoiser"]
