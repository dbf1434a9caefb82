"""Stable Diffusion 3 and 3.5: a transformer trained on straight paths (Esser et al. 2024)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders import SD3LoraLoaderMixin
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from models.adapters import AdapterBase, SD3Controls, controls_in_batch, residuals
from models.configs.networks import FLOW_AUTOENCODER, SD3_TRANSFORMER
from models.configs.text_encoders import CLIP_TEXT, T5_ENCODER
from models.denoisers.base import MAX_SIDE, Conditioning, Sizes
from models.denoisers.latent import SDXL_SHAPES, LatentPictures
from models.denoisers.text import AdaptedReading, Encodings, TextEncoder
from models.loading import load_component
from models.networks.tokens import Readings, readings_on
from models.pack import Pack
from models.precision import Precision
from models.spec import LongPrompt, Lora, PromptOptions, SampleSpec

T5_TOKENS = 256
FAMILY = "Stable Diffusion 3"
Prompt = tuple[str, tuple[Lora, ...]]


def _inputs(
    network: SD3Transformer2DModel, x: Tensor, timesteps: Tensor, conditioning: Conditioning
) -> dict[str, Tensor]:
    """What the transformer is called with."""
    return {
        "hidden_states": x.to(network.dtype),
        "timestep": timesteps,
        "encoder_hidden_states": conditioning["states"].to(network.dtype),
        "pooled_projections": conditioning["pooled"].to(network.dtype),
    }


class StableDiffusion3Denoiser(AdaptedReading, LatentPictures):
    """Prompts are encoded as the joined states of two CLIP encoders, followed by T5's, or by zeros without T5.

    Each encoder reads the prompt up to its own limit, as in diffusers' pipeline.
    """

    takes_prompt = True
    has_classes = False
    sees_mask = False
    low_res_size: int | None = None
    has_null = True
    learns_variance = False
    default_scale = 7.0
    prediction_type = "flow_prediction"
    prompt_options = PromptOptions(long_prompts=(LongPrompt.TRUNCATE, LongPrompt.REFUSE))

    def __init__(self, pack: Pack, device: torch.device, precision: Precision) -> None:
        self.network = load_component(
            SD3Transformer2DModel, pack, "transformer", device, precision, keys=SD3_TRANSFORMER
        )
        config = self.network.config
        super().__init__(pack, device, config.sample_size, config.in_channels, precision, FLOW_AUTOENCODER)
        self.patch = int(config.patch_size)
        multiple_of = self.patch * self.autoencoder.factor
        positions = multiple_of * config.pos_embed_max_size if config.pos_embed_max_size else MAX_SIDE
        self.sizes = Sizes.around(self.picture_size, multiple_of=multiple_of, shapes=SDXL_SHAPES, max_side=positions)
        self.num_parameters = sum(parameter.numel() for parameter in self.network.parameters())
        self.device = device
        first = TextEncoder(pack, "", CLIPTextModelWithProjection, device, CLIP_TEXT, precision)
        second = TextEncoder(pack, "_2", CLIPTextModelWithProjection, device, CLIP_TEXT, precision, first.max_length)
        self.clips = [first, second]
        self.t5 = None
        if pack.has("text_encoder_3"):
            self.t5 = TextEncoder(
                pack, "_3", T5EncoderModel, device, T5_ENCODER, precision, T5_TOKENS, keeps_layers=False
            )
        self.encoders: list[TextEncoder] = [*self.clips, *([self.t5] if self.t5 is not None else [])]
        shift = self.autoencoder.shift * self.autoencoder.scale
        self._controls = SD3Controls(FAMILY, self.network, functools.partial(_inputs, self.network), shift)
        if not precision.compiled:
            self.adapter_base = AdapterBase(
                family=FAMILY,
                loader=SD3LoraLoaderMixin,
                networks={"transformer": self.network, **{encoder.name: encoder.network for encoder in self.clips}},
                controls=self._controls,
            )
        self._encoded = Encodings(self._encode)

    def encode_prompts(self, specs: Sequence[SampleSpec]) -> None:
        self._encoded.add([prompt for spec in specs for prompt in self._prompts(spec)])

    def conditioning(self, spec: SampleSpec) -> tuple[Conditioning, Conditioning]:
        prompt, negative = self._prompts(spec)
        return self._encoded(prompt), self._encoded(negative)

    def _prompts(self, spec: SampleSpec) -> tuple[Prompt, Prompt]:
        """The prompt and the negative prompt, each with the LoRAs that change how it is read."""
        loras = self.loras_read(spec)
        return (spec.prompt or "", loras), (spec.negative_prompt or "", loras)

    def readings(self, spec: SampleSpec) -> Readings:
        return readings_on(spec, [encoder.reading for encoder in self.encoders])

    @torch.inference_mode()
    def _encode(self, asked: Sequence[Prompt]) -> list[Conditioning]:
        prompts, extras = [prompt for prompt, _ in asked], [self.extras_of(loras) for _, loras in asked]
        width = int(self.network.config.joint_attention_dim)
        encoded: list[Conditioning] = []
        of_t5 = iter(()) if self.t5 is None else self.t5(prompts)
        for outputs in zip(*(clip(prompts, extras) for clip in self.clips), strict=True):
            states = torch.cat([output["hidden_states"][-2][0] for output in outputs], dim=-1)
            states = functional.pad(states, (0, width - states.shape[-1]))
            last = states.new_zeros(T5_TOKENS, width) if self.t5 is None else next(of_t5)["last_hidden_state"][0]
            pooled = torch.cat([output["text_embeds"][0] for output in outputs])
            encoded.append({"states": torch.cat([states, last]), "pooled": pooled})
        return encoded

    @torch.inference_mode()
    def forward(self, x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        inputs = self._controls.inputs(x, timesteps, conditioning)
        output = self.network(**inputs, **residuals(self._controls, controls_in_batch(), inputs))
        return output.sample.float()
