"""ControlNets of Flux.1, which add to the output of a transformer's blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import FluxControlNetModel
from torch import Tensor
from torch.nn import functional

from models.adapters.controls.family import (
    CONDITION,
    Added,
    Encode,
    Inputs,
    MakeInputs,
    Residuals,
    factor_difference,
    first_difference,
)
from models.configs import Keys
from models.configs.networks import FLUX_CONTROLNET
from models.pack import LATENT_PATCH

_SHARED = (
    "in_channels",
    "num_attention_heads",
    "attention_head_dim",
    "axes_dims_rope",
    "joint_attention_dim",
    "pooled_projection_dim",
)
_HINT_FACTOR = 8  # pixels to the side of what XLabs' ControlNets make of a picture


def tokens_of(latents: Tensor) -> Tensor:
    """Latents (B,C,H,W) as the transformer's tokens, (B,H/2·W/2,4C)."""
    return functional.pixel_unshuffle(latents, LATENT_PATCH).flatten(2).transpose(1, 2)


def called_with(network: Any, inputs: Inputs) -> dict[str, Tensor | None]:
    """The inputs of a transformer or ControlNet as diffusers has them: places for all rows, guidance if it is taken."""
    return {
        **inputs,
        "txt_ids": inputs["txt_ids"][0],
        "img_ids": inputs["img_ids"][0],
        "guidance": inputs["guidance"] if network.config.guidance_embeds else None,
    }


class FluxControls:
    """ControlNets that see the tokens of the picture's latents; XLabs' see the picture, in [-1, 1].

    As in diffusers' pipeline, both rows of classifier-free guidance get what is found with the prompt.

    Args:
        name: of the pack's family.
        transformer: its denoiser.
        inputs: what that is called with.
        factor: side of the square of pixels that a latent stands for.
    """

    network_class: ClassVar[type[Any]] = FluxControlNetModel
    keys: ClassVar[Keys] = FLUX_CONTROLNET

    def __init__(self, name: str, transformer: Any, inputs: MakeInputs, factor: int) -> None:
        self.name = name
        self.inputs = inputs
        self._transformer = transformer
        self._factor = factor

    @staticmethod
    def family_of(config: Mapping[str, Any]) -> str:
        return "Flux"

    def difference(self, config: Mapping[str, Any]) -> str | None:
        found = first_difference(config, self._transformer.config, _SHARED, "transformer")
        channels, patch = config["conditioning_embedding_channels"], config["patch_size"]
        if found is not None or channels is None:
            return found
        right = config["in_channels"] // LATENT_PATCH**2
        if (channels, patch) != (right, LATENT_PATCH):
            return (
                f"its conditioning_embedding_channels is {channels} and its patch_size {patch}; for its in_channels, "
                f"{config['in_channels']}, they are {right} and {LATENT_PATCH}"
            )
        return factor_difference(_HINT_FACTOR, self._factor)

    def complete(self, network: Any, device: torch.device) -> None:
        pass

    def condition(self, network: Any, picture: Tensor, conditional: Mapping[str, Tensor], encode: Encode) -> Inputs:
        seen = 2 * picture - 1
        if network.input_hint_block is None:
            seen = tokens_of(encode(seen[None]))[0]
        return {
            "encoder_hidden_states": conditional["states"].to(network.dtype),
            "pooled_projections": conditional["pooled"].to(network.dtype),
            CONDITION: seen.to(network.dtype),
        }

    def probe(self, network: Any, x: Tensor) -> Inputs:
        if network.input_hint_block is None:
            return {CONDITION: tokens_of(x).to(network.dtype)}
        return {CONDITION: functional.interpolate(x[:, :3].tanh(), scale_factor=self._factor).to(network.dtype)}

    def run(self, network: Any, inputs: Inputs) -> Residuals:
        samples, singles = network(**called_with(network, inputs), return_dict=False)
        repeats = network.input_hint_block is not None
        return [
            *_spread(samples, len(self._transformer.transformer_blocks), repeats=repeats),
            *_spread(singles, len(self._transformer.single_transformer_blocks)),
        ]

    def arguments(self, added: Sequence[Added]) -> dict[str, Any]:
        count = len(self._transformer.transformer_blocks)
        return {"controlnet_block_samples": added[:count], "controlnet_single_block_samples": added[count:]}


def _spread(samples: Sequence[Tensor] | None, blocks: int, *, repeats: bool = False) -> list[Tensor | None]:
    """What each block of the transformer gets of a ControlNet's blocks, by the rule of diffusers' transformer."""
    if not samples:
        return [None] * blocks
    interval = -(-blocks // len(samples))
    return [samples[block % len(samples) if repeats else block // interval] for block in range(blocks)]
