"""Stable Diffusion 1, 2 and XL (Rombach et al. 2022; Podell et al. 2023)."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from models.adapters import AdapterBase, ImagePrompts, UNetControls, controls_in_batch, residuals
from models.configs.networks import AUTOENCODER, STABLE_DIFFUSION_UNET, XL_AUTOENCODER, XL_UNET
from models.configs.text_encoders import CLIP_TEXT
from models.denoisers.base import Conditioning, Sizes
from models.denoisers.latent import SDXL_SHAPES, LatentPictures, distilled_guidance
from models.denoisers.text import AdaptedReading, Encodings, TextEncoder, Wording, weighed
from models.loading import load_component
from models.networks.chunks import Chunk
from models.networks.tokens import Readings, readings_on
from models.pack import InvalidPack, Pack
from models.precision import Precision
from models.profiles import PROFILES, fitted
from models.spec import LongPrompt, PromptOptions, SampleSpec
from models.weights import turn

LCM_GUIDANCE = 8.5  # of the pipeline of latent consistency models
SECOND_WIDTH = 1024  # of the states that the UNet of Stable Diffusion 2 reads
SHAPES = ((1.0, 1.0), (1.5, 1.0), (1.0, 1.5))  # that Stable Diffusion 1 and 2 are commonly used with


def _size(config: Any) -> int | Sequence[int] | None:
    """The `sample_size`; before diffusers 0.9 converters wrote 32 where 64 was meant, and its pipelines know that."""
    size, is_old = config.sample_size, re.match(r"0\.[0-8]\b", str(config.get("_diffusers_version")))
    return 64 if is_old and isinstance(size, int) and size < 64 else size


def _embedded_scale(guidance: float, width: int, device: torch.device) -> Tensor:
    """Sinusoids (1,width) of a guidance scale, as latent consistency models are told it."""
    scale = torch.tensor([1000.0 * (guidance - 1)], device=device)
    return get_timestep_embedding(scale, width, flip_sin_to_cos=False, downscale_freq_shift=1)


def _inputs(
    network: UNet2DConditionModel, is_xl: bool, x: Tensor, timesteps: Tensor, conditioning: Conditioning
) -> dict[str, Tensor]:
    """What the UNet is called with, but for what it is told of inpainting and of a guidance scale."""
    added: dict[str, Tensor] = {}
    if is_xl:
        added = {"text_embeds": conditioning["pooled"].to(network.dtype), "time_ids": conditioning["times"]}
    states = conditioning["states"].to(network.dtype)
    return {"sample": x.to(network.dtype), "timestep": timesteps, "encoder_hidden_states": states, **added}


class StableDiffusionDenoiser(AdaptedReading, LatentPictures):
    """Prompts are encoded as the states of one CLIP text encoder, or of two for XL; no prompt is encoded as "".

    A prompt of more tokens than CLIP reads at once is encoded in chunks, whose states are joined; XL's pooled vector is
    that of the first chunk, as in A1111 and ComfyUI. The shorter of prompt and negative prompt is filled up with chunks
    of "", so that both rows have equally many tokens, as compel does, and A1111 with `pad_cond_uncond`.

    A UNet trained for inpainting has additional input channels for the mask and for the latents of the picture with the
    masked area grey. Without a picture everything is masked.

    The UNet of a latent consistency model (Luo et al. 2023) takes a guidance scale, the pack's `distilled_guidance`, as
    an input like the timestep. It was trained without unconditional rows.
    """

    takes_prompt = True
    has_classes = False
    low_res_size: int | None = None
    learns_variance = False

    def __init__(self, pack: Pack, device: torch.device, precision: Precision) -> None:
        self.is_xl = pack.has("text_encoder_2")
        keys = XL_UNET if self.is_xl else STABLE_DIFFUSION_UNET
        self.network = load_component(UNet2DConditionModel, pack, "unet", device, precision, keys=keys)
        config = self.network.config
        size = config.sample_size if self.is_xl else _size(config)
        autoencoder = XL_AUTOENCODER if self.is_xl else AUTOENCODER
        super().__init__(pack, device, size, config.out_channels, precision, autoencoder)
        shapes = SDXL_SHAPES if self.is_xl else SHAPES
        self.sizes = Sizes.around(self.picture_size, multiple_of=self.autoencoder.factor, shapes=shapes)
        self.takes_size_conditioning = self.is_xl
        self.prediction_type = str(pack.scheduler_config.get("prediction_type", "epsilon"))
        extra = config.in_channels - config.out_channels
        if extra not in (0, config.out_channels + 1):
            raise InvalidPack(
                f"pack '{pack.name}' has a UNet of {config.in_channels} channels; only UNets that take a latent, or a "
                "latent, a mask and a masked latent, are supported"
            )
        self.sees_mask = extra > 0
        self.default_scale = 5.0 if self.is_xl and not self.sees_mask else 7.5
        self.num_parameters = sum(parameter.numel() for parameter in self.network.parameters())
        is_input = config.time_cond_proj_dim is not None
        guidance = distilled_guidance(pack, LCM_GUIDANCE, is_input=is_input)
        self.scale = _embedded_scale(guidance, config.time_cond_proj_dim, device) if is_input else None
        self.has_null = not is_input
        self.zeros_empty = bool(pack.index.get("force_zeros_for_empty_prompt", True))
        self.device = device
        self.encoders: list[TextEncoder] = [TextEncoder(pack, "", CLIPTextModel, device, CLIP_TEXT, precision)]
        if self.is_xl:
            self.encoders.append(TextEncoder(pack, "_2", CLIPTextModelWithProjection, device, CLIP_TEXT, precision))
        layers = min(encoder.network.config.num_hidden_layers for encoder in self.encoders)
        self.prompt_options = PromptOptions(
            long_prompts=tuple(LongPrompt), takes_weights=True, most_clip_skip=layers - self.is_xl
        )
        inputs = functools.partial(_inputs, self.network, self.is_xl)
        self._controls = UNetControls(self._family, self.network, inputs, self.autoencoder.factor)
        if not precision.compiled:
            self.adapter_base = self._adapter_base()
            if pack.has_ip_adapter:
                self.image_prompts = ImagePrompts(pack, self.network, device, precision)
        self._encoded = Encodings(self._encode)
        self._all_masked = functools.lru_cache(maxsize=16)(self._blank)

    @property
    def _family(self) -> str:
        is_second = self.network.config.cross_attention_dim == SECOND_WIDTH
        return "Stable Diffusion XL" if self.is_xl else f"Stable Diffusion {1 + is_second}"

    def _adapter_base(self) -> AdapterBase:
        return AdapterBase(
            family=self._family,
            loader=StableDiffusionXLLoraLoaderMixin if self.is_xl else StableDiffusionLoraLoaderMixin,
            networks={"unet": self.network, **{encoder.name: encoder.network for encoder in self.encoders}},
            controls=self._controls,
        )

    def encode_prompts(self, specs: Sequence[SampleSpec]) -> None:
        self._encoded.add([wording for spec in specs for wording in self._wordings(spec)])

    def conditioning(self, spec: SampleSpec) -> tuple[Conditioning, Conditioning]:
        self.prompt_options.check(spec)  # a guide's spec is written for another model
        prompt, negative = self._wordings(spec)
        conditional, unconditional = self._encoded(prompt), self._encoded(negative)
        tokens = max(len(conditional["states"]), len(unconditional["states"]))
        conditional = self._filled(conditional, prompt, tokens)
        unconditional = self._filled(unconditional, negative, tokens)
        if self.is_xl and self.zeros_empty and spec.negative_prompt is None:
            states, pooled = torch.zeros_like(unconditional["states"]), torch.zeros_like(unconditional["pooled"])
            unconditional = {**unconditional, "states": states, "pooled": pooled}
        inpainting = self._inpainting(spec) if self.sees_mask else {}
        times, negative_times = self._times(spec) if self.is_xl else ({}, {})
        return {**conditional, **times, **inpainting}, {**unconditional, **negative_times, **inpainting}

    def _wordings(self, spec: SampleSpec) -> tuple[Wording, Wording]:
        """The prompt and the negative prompt."""
        loras = self.loras_read(spec)
        negative = Wording.of(spec, "negative_prompt", skips=PROFILES[spec.profile].skips_negative, loras=loras)
        return Wording.of(spec, "prompt", loras=loras), negative

    def readings(self, spec: SampleSpec) -> Readings:
        chunked = spec.long_prompt is not LongPrompt.TRUNCATE
        return readings_on(spec, [functools.partial(encoder.reading, chunked=chunked) for encoder in self.encoders])

    def _filled(self, conditioning: Conditioning, wording: Wording, tokens: int) -> Conditioning:
        """The conditioning with states for at least this many tokens."""
        states = [conditioning["states"]]
        while sum(map(len, states)) < tokens:
            states.append(self._encoded(wording.empty)["states"])
        return {**conditioning, "states": torch.cat(states)}

    def _inpainting(self, spec: SampleSpec) -> Conditioning:
        size = spec.size(self.picture_size)
        if spec.init_image is None or spec.mask is None:
            return self._all_masked(size)
        mask = (fitted(spec.mask.array(), size, 1) > 127.5).float()
        return self._masked(fitted(spec.init_image.array(), size, 3) / 127.5 - 1, mask)

    def _blank(self, size: tuple[int, int]) -> Conditioning:
        return self._masked(torch.zeros(3, *size), torch.ones(1, *size))

    def _times(self, spec: SampleSpec) -> tuple[Conditioning, Conditioning]:
        """Sizes and crop that XL is told, (6,) each, for a conditional and an unconditional row."""

        def told(times: tuple[int, ...]) -> Conditioning:
            return {"times": torch.tensor(times, dtype=torch.float32, device=self.device)}

        size, told_of = spec.size(self.picture_size), spec.size_conditioning
        return told(told_of.times(size)), told(told_of.negative_times(size))

    def _masked(self, picture: Tensor, mask: Tensor) -> Conditioning:
        return {
            "mask": self.encode_mask(mask[None].to(self.device))[0],
            "masked_latent": self.encode((picture * (1 - mask))[None].to(self.device))[0],
        }

    @torch.inference_mode()
    def _encode(self, wordings: Sequence[Wording]) -> list[Conditioning]:
        prompts = [self._chunks(wording) for wording in wordings]
        extras = [self.extras_of(wording.loras) for wording in wordings]
        hidden: list[list[Tensor]] = [[] for _ in wordings]  # of each encoder, (tokens,width)
        pooled: list[Tensor] = []
        for number, encoder in enumerate(self.encoders):
            outputs = encoder.read(
                [chunk.ids for chunks in prompts for chunk in chunks[number]],
                [extra for extra, chunks in zip(extras, prompts, strict=True) for _ in chunks[number]],
            )
            for wording, chunks, states in zip(wordings, prompts, hidden, strict=True):
                read = list(itertools.islice(outputs, len(chunks[number])))
                layers = [self._layer(encoder, output, wording.clip_skip)[0] for output in read]
                states.append(torch.cat([weighed(*pair) for pair in zip(layers, chunks[number], strict=True)]))
                if self.is_xl and number == 1:
                    pooled.append(read[0]["text_embeds"][0].clone())
        encoded: list[Conditioning] = [{"states": torch.cat(states, dim=-1)} for states in hidden]
        if not self.is_xl:
            return encoded
        return [{**states, "pooled": vector} for states, vector in zip(encoded, pooled, strict=True)]

    def _chunks(self, wording: Wording) -> list[list[Chunk]]:
        """The prompt's chunks for each encoder, equally many for all."""
        prompts = [encoder.chunks(wording.parts) for encoder in self.encoders]
        count = max(map(len, prompts)) if wording.chunked else 1
        return [
            (chunks + encoder.chunks(wording.empty.parts) * (count - len(chunks)))[:count]
            for encoder, chunks in zip(self.encoders, prompts, strict=True)
        ]

    def _layer(self, encoder: TextEncoder, output: Mapping[str, Any], clip_skip: int) -> Tensor:
        """The states (1,tokens,width) that the network is conditioned on."""
        states: Tensor
        if self.is_xl:  # the states before the last layer, without the final norm
            states = output["hidden_states"][-1 - clip_skip]
        elif clip_skip == 1:
            states = output["last_hidden_state"]
        else:
            with turn(encoder.network):
                states = encoder.network.final_layer_norm(output["hidden_states"][-clip_skip])
        return states

    @torch.inference_mode()
    def forward(self, x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        dtype, inputs = self.network.dtype, self._controls.inputs(x, timesteps, conditioning)
        added = {name: inputs[name] for name in ("text_embeds", "time_ids") if name in inputs}
        if self.sees_mask:
            x = torch.cat([x, conditioning["mask"], conditioning["masked_latent"]], dim=1)
        output = self.network(
            x.to(dtype),
            timesteps,
            encoder_hidden_states=inputs["encoder_hidden_states"],
            timestep_cond=None if self.scale is None else self.scale.to(dtype).expand(len(x), -1),
            added_cond_kwargs=added or None,
            **residuals(self._controls, controls_in_batch(), inputs),
        )
        return output.sample.float()
