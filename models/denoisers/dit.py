"""Class-conditional diffusion transformers (Peebles & Xie 2023)."""

from __future__ import annotations

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor

from models.configs.networks import DIT
from models.denoisers.base import Conditioning
from models.denoisers.latent import LatentPictures
from models.loading import load_component
from models.pack import InvalidPack, Pack
from models.precision import Precision
from models.spec import SampleSpec


class DiTDenoiser(LatentPictures):
    """The class after the last one means "no label". The variance channels are dropped, as in diffusers."""

    takes_prompt = False
    has_classes = True
    sees_mask = False
    low_res_size: int | None = None
    has_null = True
    learns_variance = False
    default_scale = 4.0

    def __init__(self, pack: Pack, device: torch.device, precision: Precision) -> None:
        self.network = load_component(
            DiTTransformer2DModel, pack, "transformer", device, precision, keys=DIT, also=("Transformer2DModel",)
        )
        config = self.network.config
        if config.out_channels not in (None, config.in_channels, 2 * config.in_channels):
            raise InvalidPack(
                f"{pack.folder}: out_channels of its transformer is {config.out_channels}; served: {config.in_channels}"
                f", or {2 * config.in_channels} with the variance"
            )
        super().__init__(pack, device, config.sample_size, config.in_channels, precision)
        self.prediction_type = str(pack.scheduler_config.get("prediction_type", "epsilon"))
        self.num_parameters = sum(parameter.numel() for parameter in self.network.parameters())
        self.null_label = int(config.num_embeds_ada_norm)

    def conditioning(self, spec: SampleSpec) -> tuple[Conditioning, Conditioning]:
        label = self.null_label if spec.class_index is None else spec.class_index
        return {"labels": torch.tensor(label)}, {"labels": torch.tensor(self.null_label)}

    @torch.inference_mode()
    def forward(self, x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        output = self.network(x.to(self.network.dtype), timesteps, class_labels=conditioning["labels"]).sample
        return output[:, : self.latent_shape[0]].float()
