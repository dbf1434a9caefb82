"""ControlNets of Stable Diffusion 1, 2 and XL, which add to a UNet's skip connections (Zhang et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import ControlNetModel
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
from models.configs.networks import CONTROLNET

XL, SD1, SD2 = "Stable Diffusion XL", "Stable Diffusion 1", "Stable Diffusion 2"
_SECOND_WIDTH = 1024  # of the states that Stable Diffusion 2 reads
_SHARED = ("block_out_channels", "layers_per_block", "cross_attention_dim", "projection_class_embeddings_input_dim")


class UNetControls:
    """ControlNets that see the picture itself, in 0..1.

    Args:
        name: of the pack's family.
        unet: its denoiser.
        inputs: what that is called with.
        factor: side of the square of pixels that a latent stands for.
    """

    network_class: ClassVar[type[Any]] = ControlNetModel
    keys: ClassVar[Keys] = CONTROLNET

    def __init__(self, name: str, unet: Any, inputs: MakeInputs, factor: int) -> None:
        self.name = name
        self.inputs = inputs
        self._unet = unet
        self._factor = factor

    @staticmethod
    def family_of(config: Mapping[str, Any]) -> str:
        if config["addition_embed_type"] == "text_time":
            return XL
        return SD2 if config["cross_attention_dim"] == _SECOND_WIDTH else SD1

    def difference(self, config: Mapping[str, Any]) -> str | None:
        unet = {**self._unet.config, "in_channels": self._unet.config.out_channels}  # others are inpainting's
        if (found := first_difference(config, unet, (*_SHARED, "in_channels"), "UNet")) is not None:
            return found
        return factor_difference(2 ** (len(config["conditioning_embedding_out_channels"]) - 1), self._factor)

    def complete(self, network: Any, device: torch.device) -> None:
        pass

    def condition(self, network: Any, picture: Tensor, conditional: Mapping[str, Tensor], encode: Encode) -> Inputs:
        return {CONDITION: picture.to(network.dtype)}

    def probe(self, network: Any, x: Tensor) -> Inputs:
        return {CONDITION: functional.interpolate(x[:, :3].sigmoid(), scale_factor=self._factor).to(network.dtype)}

    def run(self, network: Any, inputs: Inputs) -> Residuals:
        added = {name: inputs[name] for name in ("text_embeds", "time_ids") if name in inputs}
        down, middle = network(
            inputs["sample"],
            inputs["timestep"],
            inputs["encoder_hidden_states"],
            inputs[CONDITION],
            added_cond_kwargs=added or None,
            return_dict=False,
        )
        return [*down, middle]

    def arguments(self, added: Sequence[Added]) -> dict[str, Any]:
        return {"down_block_additional_residuals": added[:-1], "mid_block_additional_residual": added[-1]}
