"""Stable Diffusion 1, 2 and XL (Rombach et al. 2022; Podell et al. 2023)."""

from __future__ import annotations

import functools

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from models.denoisers.base import Conditioning
from models.denoisers.latent import Autoencoder
from models.denoisers.text import TextEncoder
from models.loading import Pack, Precision, load_network
from models.spec import InvalidSpec, SampleSpec


class StableDiffusionDenoiser:
    """Prompts as the states of one CLIP text encoder, or of two for XL; without a prompt, those of ""."""

    takes_prompt = True
    has_classes = False
    low_res_size: int | None = None
    has_null = True
    learns_variance = False

    def __init__(self, pack: Pack, device: torch.device, precision: Precision) -> None:
        self.network = load_network(UNet2DConditionModel, pack.component("unet"), device, precision)
        config = self.network.config
        self.autoencoder = Autoencoder(pack, device)
        self.prediction_type = str(pack.scheduler_config.get("prediction_type", "epsilon"))
        self.latent_shape = (config.in_channels, config.sample_size, config.sample_size)
        if config.in_channels != config.out_channels:
            raise InvalidSpec("a UNet trained for inpainting takes more than a latent; use the plain one")
        self.picture_size = (config.sample_size * self.autoencoder.factor,) * 2
        self.num_parameters = sum(parameter.numel() for parameter in self.network.parameters())
        self.is_xl = pack.has("text_encoder_2")
        self.zeros_empty = bool(pack.index.get("force_zeros_for_empty_prompt", True))
        self.device = device
        self.encoders = [TextEncoder(pack, "", CLIPTextModel, device)]
        if self.is_xl:
            self.encoders.append(TextEncoder(pack, "_2", CLIPTextModelWithProjection, device))
        self._encoded = functools.lru_cache(maxsize=256)(self._encode)

    def conditioning(self, spec: SampleSpec) -> tuple[Conditioning, Conditioning]:
        conditional = self._encoded(spec.prompt or "")
        unconditional = self._encoded(spec.negative_prompt or "")
        if self.is_xl and self.zeros_empty and spec.negative_prompt is None:
            states, pooled = torch.zeros_like(unconditional["states"]), torch.zeros_like(unconditional["pooled"])
            unconditional = {**unconditional, "states": states, "pooled": pooled}
        return conditional, unconditional

    @torch.inference_mode()
    def _encode(self, prompt: str) -> Conditioning:
        outputs = [encoder(prompt) for encoder in self.encoders]
        # XL takes the states before the last layer, without the final norm, and the second encoder's projection
        hidden = [output.hidden_states[-2] if self.is_xl else output.last_hidden_state for output in outputs]
        states = torch.cat(hidden, dim=-1)[0]
        if not self.is_xl:
            return {"states": states}
        height, width = self.picture_size
        times = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=self.device)
        return {"states": states, "pooled": outputs[-1][0][0], "times": times}

    @torch.inference_mode()
    def forward(self, x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = self.network.dtype
        added = None
        if self.is_xl:
            added = {"text_embeds": conditioning["pooled"].to(dtype), "time_ids": conditioning["times"]}
        states = conditioning["states"].to(dtype)
        output = self.network(x.to(dtype), timesteps, encoder_hidden_states=states, added_cond_kwargs=added)
        return output.sample.float()

    def decode(self, x: Tensor) -> Tensor:
        return self.autoencoder.decode(x)

    def encode(self, pictures: Tensor) -> Tensor:
        return self.autoencoder.encode(pictures)

    def encode_mask(self, mask: Tensor) -> Tensor:
        return self.autoencoder.encode_mask(mask)
