"""Flux.1: a transformer trained on straight paths, over 2×2 patches of latents (Black Forest Labs 2024)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, T5EncoderModel

from models.configs.networks import FLOW_AUTOENCODER, FLUX_TRANSFORMER
from models.configs.text_encoders import CLIP_TEXT, T5_ENCODER
from models.denoisers.base import Conditioning, Sizes
from models.denoisers.latent import SDXL_SHAPES, LatentPictures, distilled_guidance
from models.denoisers.text import Encodings, TextEncoder
from models.loading import load_component
from models.networks.tokens import Readings, readings_on
from models.pack import LATENT_PATCH, Pack
from models.precision import Precision
from models.spec import LongPrompt, PromptOptions, SampleSpec

T5_TOKENS = 512
GUIDANCE = 3.5  # of Flux.1-dev's pipeline


class FluxDenoiser(LatentPictures):
    """Prompts are encoded as T5's states and CLIP's pooled vector, each up to its own limit, as in diffusers' pipeline.

    A guidance-distilled network takes a scale, the pack's `distilled_guidance`, as an input like the timestep. A
    request's guidance is classifier-free guidance on top of it, with separate rows.
    """

    takes_prompt = True
    has_classes = False
    sees_mask = False
    low_res_size: int | None = None
    has_null = True
    learns_variance = False
    patch = LATENT_PATCH
    default_scale = 1.0  # its own guidance is an input of the network
    prediction_type = "flow_prediction"
    prompt_options = PromptOptions(long_prompts=(LongPrompt.TRUNCATE, LongPrompt.REFUSE))

    def __init__(self, pack: Pack, device: torch.device, precision: Precision) -> None:
        self.network = load_component(
            FluxTransformer2DModel, pack, "transformer", device, precision, keys=FLUX_TRANSFORMER
        )
        channels = self.network.config.in_channels // LATENT_PATCH**2
        super().__init__(pack, device, pack.latent_size, channels, precision, FLOW_AUTOENCODER)
        multiple_of = LATENT_PATCH * self.autoencoder.factor
        self.sizes = Sizes.around(self.picture_size, multiple_of=multiple_of, shapes=SDXL_SHAPES)
        self.num_parameters = sum(parameter.numel() for parameter in self.network.parameters())
        self.guidance = distilled_guidance(pack, GUIDANCE, is_input=self.network.config.guidance_embeds)
        self.device = device
        self.clip = TextEncoder(pack, "", CLIPTextModel, device, CLIP_TEXT, precision, keeps_layers=False)
        self.t5 = TextEncoder(pack, "_2", T5EncoderModel, device, T5_ENCODER, precision, T5_TOKENS, keeps_layers=False)
        self.encoders: list[TextEncoder] = [self.clip, self.t5]
        self._places = functools.lru_cache(maxsize=16)(self._numbered)
        self._encoded = Encodings(self._encode)

    def encode_prompts(self, specs: Sequence[SampleSpec]) -> None:
        self._encoded.add([prompt or "" for spec in specs for prompt in (spec.prompt, spec.negative_prompt)])

    def conditioning(self, spec: SampleSpec) -> tuple[Conditioning, Conditioning]:
        return self._encoded(spec.prompt or ""), self._encoded(spec.negative_prompt or "")

    def readings(self, spec: SampleSpec) -> Readings:
        return readings_on(spec, [self.t5.reading, self.clip.reading])

    @torch.inference_mode()
    def _encode(self, prompts: Sequence[str]) -> list[Conditioning]:
        return [
            {"states": states["last_hidden_state"][0].clone(), "pooled": clip["pooler_output"][0].clone()}
            for states, clip in zip(self.t5(prompts), self.clip(prompts), strict=True)
        ]

    def _numbered(self, rows: int, columns: int) -> Tensor:
        """Row and column of every token, (rows·columns,3); the first number is 0 for pictures."""
        row, column = torch.meshgrid(
            torch.arange(rows, device=self.device), torch.arange(columns, device=self.device), indexing="ij"
        )
        return torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3).float()

    @torch.inference_mode()
    def forward(self, x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = self.network.dtype
        patches = functional.pixel_unshuffle(x, LATENT_PATCH)  # (B,4C,H/2,W/2)
        states = conditioning["states"].to(dtype)
        output = self.network(
            patches.flatten(2).transpose(1, 2).to(dtype),  # (B,tokens,4C)
            timestep=(timesteps / 1000).to(dtype),
            guidance=torch.full_like(timesteps, self.guidance) if self.network.config.guidance_embeds else None,
            pooled_projections=conditioning["pooled"].to(dtype),
            encoder_hidden_states=states,
            txt_ids=states.new_zeros(states.shape[1], 3),
            img_ids=self._places(*patches.shape[2:]).to(dtype),
        ).sample
        return functional.pixel_shuffle(output.transpose(1, 2).unflatten(2, patches.shape[2:]), LATENT_PATCH).float()
