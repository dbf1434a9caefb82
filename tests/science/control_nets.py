"""ControlNets with small random networks, as diffusers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    FluxControlNetModel,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
)


def control_net(denoiser: Any, *, seed: int = 0, factor: int = 2, **config: Any) -> Any:
    """A ControlNet for the UNet or transformer; a UNet's latents stand for squares of `factor` pixels.

    Its residuals, which are zero in a fresh one, can be seen. `config` replaces keys of a transformer's.
    """
    torch.manual_seed(20 + seed)
    own = {key: value for key, value in denoiser.config.items() if not key.startswith("_")}
    if isinstance(denoiser, SD3Transformer2DModel):
        network: Any = SD3ControlNetModel.from_config({**own, "num_layers": 2, **config})
        fresh = [*network.controlnet_blocks, network.pos_embed_input.proj]
    elif isinstance(denoiser, FluxTransformer2DModel):
        network = FluxControlNetModel.from_config({**own, "num_layers": 2, "num_single_layers": 1, **config})
        hints = [] if network.input_hint_block is None else [network.input_hint_block.conv_out]
        fresh = [*network.controlnet_blocks, *network.controlnet_single_blocks, network.controlnet_x_embedder, *hints]
    else:
        channels = {2: (16, 32), 8: (8, 8, 16, 16)}[factor]
        network = ControlNetModel.from_unet(denoiser, conditioning_embedding_out_channels=channels)
        fresh = [
            *network.controlnet_down_blocks, network.controlnet_mid_block, network.controlnet_cond_embedding.conv_out,
        ]  # fmt: skip
    for layer in fresh:
        torch.nn.init.normal_(layer.weight, std=1.0 / layer.weight[0].numel() ** 0.5)
    return network.eval()


def write_control_nets(folder: Path, denoiser: Any, *names: str, factor: int = 2, **config: Any) -> dict[str, Any]:
    """One ControlNet of each name in the folder, all different."""
    networks = {name: control_net(denoiser, seed=seed, factor=factor, **config) for seed, name in enumerate(names)}
    for name, network in networks.items():
        network.save_pretrained(folder / name)
    return networks
