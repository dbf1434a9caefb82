"""Flux.1: a transformer trained on straight paths, over 2×2 patches of latents (Black Forest Labs 2024)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders import FluxLoraLoaderMixin
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, T5EncoderModel

from models.adapters import AdapterBase, FluxControls, called_with, controls_in_batch, residuals, tokens_of
from models.configs.networks import FLOW_AUTOENCODER, FLUX_TRANSFORMER
from models.configs.text_encoders import CLIP_TEXT, T5_ENCODER
from models.denoisers.base import Conditioning, Sizes
from models.denoisers.latent import SDXL_SHAPES, LatentPictures, distilled_guidance
from models.denoisers.text import AdaptedReading, Encodings, TextEncoder
from models.loading import load_component
from models.networks.tokens import Readings, readings_on
from models.pack import LATENT_PATCH, Pack
from models.precision import Precision
from models.spec import LongPrompt, Lora, PromptOptions, SampleSpec

T5_TOKENS = 512
GUIDANCE = 3.5  # of Flux.1-dev's pipeline
FAMILY = "Flux"
Prompt = tuple[str, tuple[Lora, ...]]


def _inputs(
    network: FluxTransformer2DModel,
    guidance: float,
    places: Callable[[int, int], Tensor],
    x: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
) -> dict[str, Tensor]:
    """What the transformer is called with, but for what `called_with` changes; `places` numbers rows and columns."""
    dtype, (high, wide) = network.dtype, x.shape[2:]
    states = conditioning["states"].to(dtype)
    return {
        "hidden_states": tokens_of(x).to(dtype),
        "timestep": (timesteps / 1000).to(dtype),
        "guidance": torch.full_like(timesteps, guidance),
        "pooled_projections": conditioning["pooled"].to(dtype),
        "encoder_hidden_states": states,
        "txt_ids": states.new_zeros(len(x), states.shape[1], 3),
        "img_ids": places(high // LATENT_PATCH, wide // LATENT_PATCH).to(dtype).expand(len(x), -1, -1),
    }


def _numbered(device: torch.device, rows: int, columns: int) -> Tensor:
    """Row and column of every token, (rows·columns,3); the first number is 0 for pictures."""
    row, column = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3).float()


class FluxDenoiser(AdaptedReading, LatentPictures):
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
        places = functools.lru_cache(maxsize=16)(functools.partial(_numbered, device))
        inputs = functools.partial(_inputs, self.network, self.guidance, places)
        self._controls = FluxControls(FAMILY, self.network, inputs, self.autoencoder.factor)
        if not precision.compiled:
            self.adapter_base = AdapterBase(
                family=FAMILY,
                loader=FluxLoraLoaderMixin,
                networks={"transformer": self.network, self.clip.name: self.clip.network},
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
        return readings_on(spec, [self.t5.reading, self.clip.reading])

    @torch.inference_mode()
    def _encode(self, asked: Sequence[Prompt]) -> list[Conditioning]:
        prompts, extras = [prompt for prompt, _ in asked], [self.extras_of(loras) for _, loras in asked]
        return [
            {"states": states["last_hidden_state"][0].clone(), "pooled": clip["pooler_output"][0].clone()}
            for states, clip in zip(self.t5(prompts), self.clip(prompts, extras), strict=True)
        ]

    @torch.inference_mode()
    def forward(self, x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        inputs = self._controls.inputs(x, timesteps, conditioning)
        tokens = self.network(
            **called_with(self.network, inputs), **residuals(self._controls, controls_in_batch(), inputs)
        ).sample
        size = [side // LATENT_PATCH for side in x.shape[2:]]
        return functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, size), LATENT_PATCH).float()
