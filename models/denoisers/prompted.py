"""Prompted pixels: a UNet conditioned on a sentence vector and a style, both optional."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from torch import Tensor

from models.adapters import AdapterBase
from models.configs.networks import PROMPTED_UNET
from models.denoisers.base import Conditioning
from models.denoisers.pixels import FoldedPixels
from models.loading import load_component
from models.networks.sentences import pack_encoder
from models.networks.tokens import Readings, readings_on
from models.pack import Pack
from models.precision import Precision
from models.spec import SampleSpec


def told(text: Tensor, styles: Tensor) -> Tensor:
    """Concatenate text and style vectors, each scaled to norm √size, so that both weigh equally when training starts.

    `text` (B,size) has unit length, or is zero for no prompt; `styles` (B,num_styles) is one-hot, or zero for none.
    Returns (B,size+num_styles).
    """
    scale = float(text.shape[-1]) ** 0.5
    return torch.cat([text, styles], dim=-1) * scale


class PromptedPixelDenoiser(FoldedPixels):
    """Prompt and style are added to the timestep embedding; the label is the style, if the pack has any."""

    takes_prompt = True
    has_null = True
    sees_mask = False
    low_res_size: int | None = None
    learns_variance = False

    def __init__(self, pack: Pack, device: torch.device, precision: Precision) -> None:
        self.network = load_component(UNet2DConditionModel, pack, "unet", device, precision, keys=PROMPTED_UNET)
        config = self.network.config
        super().__init__(config.in_channels, config.sample_size, int(pack.index.get("pixel_unshuffle", 1)))
        self.prediction_type = str(pack.scheduler_config["prediction_type"])
        self.num_parameters = sum(parameter.numel() for parameter in self.network.parameters())
        self.num_styles = len(pack.labels)
        self.has_classes = self.num_styles > 0
        self.encoder = pack_encoder(pack)
        if not precision.compiled:
            self.adapter_base = AdapterBase(
                family="Prompted pixels", loader=StableDiffusionLoraLoaderMixin, networks={"unet": self.network}
            )

    def conditioning(self, spec: SampleSpec) -> tuple[Conditioning, Conditioning]:
        return self._conditioning(spec.prompt, spec.class_index), self._conditioning(spec.negative_prompt, None)

    def readings(self, spec: SampleSpec) -> Readings:
        return readings_on(spec, [lambda texts: self.encoder.reading("".join(texts))])

    def _conditioning(self, prompt: str | None, style: int | None) -> Conditioning:
        text = self.encoder(prompt) if prompt and prompt.strip() else torch.zeros(self.encoder.size)
        styles = torch.zeros(self.num_styles)
        if style is not None and self.has_classes:
            styles[style] = 1.0
        return {"told": told(text[None], styles[None])[0]}

    @torch.inference_mode()
    def forward(self, x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = self.network.dtype
        labels = conditioning["told"].to(dtype)
        return self.network(x.to(dtype), timesteps, None, class_labels=labels).sample.float()
