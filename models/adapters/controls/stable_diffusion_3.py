"""ControlNets of Stable Diffusion 3, which add to the output of a transformer's blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import SD3ControlNetModel
from diffusers.models.embeddings import PatchEmbed
from torch import Tensor

from models.adapters.controls.family import (
    CONDITION,
    Added,
    Encode,
    Inputs,
    MakeInputs,
    Residuals,
    first_difference,
)
from models.configs import Keys
from models.configs.networks import SD3_CONTROLNET
from models.cpu_layers import with_cpu_layers
from models.weights import turn

_SHARED = ("in_channels", "patch_size", "num_attention_heads", "attention_head_dim", "pooled_projection_dim")
_OF_TEXT = ("joint_attention_dim", "caption_projection_dim")


class SD3Controls:
    """ControlNets that see the picture's latents.

    Those trained without the autoencoder's shift and the prompts' pooled vector say so by
    `force_zeros_for_pooled_projection`. Those of Stable Diffusion 3.5 may read no states of the prompt, and embed
    latents as the transformer does.

    Args:
        name: of the pack's family.
        transformer: its denoiser.
        inputs: what that is called with.
        shift: what its autoencoder has subtracted from latents.
    """

    network_class: ClassVar[type[Any]] = SD3ControlNetModel
    keys: ClassVar[Keys] = SD3_CONTROLNET

    def __init__(self, name: str, transformer: Any, inputs: MakeInputs, shift: Tensor | float) -> None:
        self.name = name
        self.inputs = inputs
        self._transformer = transformer
        self._shift = shift

    @staticmethod
    def family_of(config: Mapping[str, Any]) -> str:
        return "Stable Diffusion 3"

    def difference(self, config: Mapping[str, Any]) -> str | None:
        shared = _SHARED if config["joint_attention_dim"] is None else (*_SHARED, *_OF_TEXT)
        found = first_difference(config, self._transformer.config, shared, "transformer")
        own, other = config["pos_embed_max_size"], self._transformer.config.pos_embed_max_size
        if found is None and config["use_pos_embed"] and (own or 0) < (other or 0):
            return f"it has positions for {own} patches a side, and the model's transformer for {other}"
        return found

    def complete(self, network: Any, device: torch.device) -> None:
        if network.config.use_pos_embed:
            return
        own, device_now = self._transformer.config, next(network.parameters()).device
        embedding = PatchEmbed(
            height=own.sample_size,
            width=own.sample_size,
            patch_size=own.patch_size,
            in_channels=own.in_channels,
            embed_dim=own.num_attention_heads * own.attention_head_dim,
            pos_embed_max_size=own.pos_embed_max_size,
        )
        with turn(self._transformer):
            state = self._transformer.pos_embed.state_dict()
            embedding.load_state_dict({key: one.to_dense() if one.is_mkldnn else one for key, one in state.items()})
        embedding = embedding.to(device_now, network.dtype).eval().requires_grad_(False)
        network.pos_embed = with_cpu_layers(embedding) if device.type == "cpu" else embedding

    def condition(self, network: Any, picture: Tensor, conditional: Mapping[str, Tensor], encode: Encode) -> Inputs:
        latents = encode(2 * picture[None] - 1)[0]
        if network.config.force_zeros_for_pooled_projection:
            latents = latents + self._shift
        return {CONDITION: latents.to(network.dtype)}

    def probe(self, network: Any, x: Tensor) -> Inputs:
        return {CONDITION: x.to(network.dtype)}

    def run(self, network: Any, inputs: Inputs) -> Residuals:
        pooled = inputs["pooled_projections"]
        [samples] = network(
            inputs["hidden_states"],
            inputs[CONDITION],
            encoder_hidden_states=None if network.context_embedder is None else inputs["encoder_hidden_states"],
            pooled_projections=(
                torch.zeros_like(pooled) if network.config.force_zeros_for_pooled_projection else pooled
            ),
            timestep=inputs["timestep"],
            return_dict=False,
        )
        blocks = len(self._transformer.transformer_blocks)
        return [samples[int(block / (blocks / len(samples)))] for block in range(blocks)]

    def arguments(self, added: Sequence[Added]) -> dict[str, Any]:
        return {"block_controlnet_hidden_states": added}
