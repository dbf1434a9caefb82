"""Keys of configuration files: every one that an installed class knows is decided; published models pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DiTTransformer2DModel,
    FluxControlNetModel,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import (
    BertModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    T5EncoderModel,
)

from models.configs import Keys, check_index, check_keys, defaults
from models.configs.networks import (
    AUTOENCODER,
    CONTROLNET,
    DIT,
    FLOW_AUTOENCODER,
    FLUX_CONTROLNET,
    FLUX_TRANSFORMER,
    PROMPTED_UNET,
    SD3_CONTROLNET,
    SD3_TRANSFORMER,
    STABLE_DIFFUSION_UNET,
    UNET_2D,
    XL_AUTOENCODER,
    XL_UNET,
)
from models.configs.text_encoders import BERT, CLIP_TEXT, CLIP_VISION, T5_ENCODER
from models.pack import InvalidPack, Pack
from tests.science import published

LISTS: dict[str, tuple[type, Keys]] = {
    "pixels": (UNet2DModel, UNET_2D),
    "prompted pixels": (UNet2DConditionModel, PROMPTED_UNET),
    "Stable Diffusion": (UNet2DConditionModel, STABLE_DIFFUSION_UNET),
    "XL": (UNet2DConditionModel, XL_UNET),
    "DiT": (DiTTransformer2DModel, DIT),
    "3": (SD3Transformer2DModel, SD3_TRANSFORMER),
    "Flux": (FluxTransformer2DModel, FLUX_TRANSFORMER),
    "ControlNet": (ControlNetModel, CONTROLNET),
    "ControlNet of 3": (SD3ControlNetModel, SD3_CONTROLNET),
    "ControlNet of Flux": (FluxControlNetModel, FLUX_CONTROLNET),
    "autoencoder": (AutoencoderKL, AUTOENCODER),
    "autoencoder of XL": (AutoencoderKL, XL_AUTOENCODER),
    "autoencoder of 3 and Flux": (AutoencoderKL, FLOW_AUTOENCODER),
    "CLIP": (CLIPTextModel, CLIP_TEXT),
    "CLIP with projection": (CLIPTextModelWithProjection, CLIP_TEXT),
    "CLIP of pictures": (CLIPVisionModelWithProjection, CLIP_VISION),
    "T5": (T5EncoderModel, T5_ENCODER),
    "MiniLM": (BertModel, BERT),
}
PUBLISHED: dict[str, list[dict[str, Any]]] = {
    "pixels": [published.DDPM_CIFAR],
    "Stable Diffusion": [
        published.UNET_1_4, published.UNET_1_5, published.UNET_2_0, published.UNET_2_1, published.UNET_LCM,
    ],
    "XL": [published.UNET_XL, published.UNET_XL_TURBO],
    "DiT": [published.DIT_XL_2],
    "3": [published.SD3_MEDIUM, published.SD3_5_MEDIUM],
    "Flux": [published.FLUX_DEV, published.FLUX_SCHNELL],
    "autoencoder": [published.AUTOENCODER_1, published.AUTOENCODER_1_5, published.AUTOENCODER_2_1],
    "autoencoder of XL": [published.AUTOENCODER_XL],
    "autoencoder of 3 and Flux": [published.AUTOENCODER_3, published.AUTOENCODER_FLUX],
    "CLIP": [published.CLIP_L, published.CLIP_H],
    "CLIP with projection": [published.CLIP_L, published.CLIP_BIG_G],
    "CLIP of pictures": [published.CLIP_VISION_H],
    "T5": [published.T5_XXL],
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_every_key_of_the_installed_class_is_decided(name: str) -> None:
    network, keys = LISTS[name]
    assert defaults(network).keys() - keys.keys() == set(), "decide it by how diffusers' pipeline uses it"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_configurations_of_published_models_are_served(name: str) -> None:
    network, keys = LISTS[name]
    for config in PUBLISHED[name]:
        check_keys(config, keys, name, defaults(network))


@pytest.mark.parametrize("name", published.INDICES)
def test_the_indices_of_published_models_are_served(name: str) -> None:
    check_index(Pack(name=name, folder=Path(name), index=published.INDICES[name], scheduler_config={}))


OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "an upscaler": ("Stable Diffusion", published.UNET_2_1 | {"num_class_embeds": 1000}, "num_class_embeds is 1000"),
    "unCLIP": ("Stable Diffusion", published.UNET_2_1 | {"class_embed_type": "projection"}, "class_embed_type .* null"),
    "GLIGEN": ("Stable Diffusion", published.UNET_1_4 | {"attention_type": "gated"}, 'served: "default"'),
    "Kandinsky": ("Stable Diffusion", published.UNET_1_4 | {"encoder_hid_dim_type": "image_proj"}, "text_proj"),
    "XL without its sizes": (
        "XL",
        {key: value for key, value in published.UNET_XL.items() if key != "addition_embed_type"},
        r'addition_embed_type is null \(left out\); served: "text_time"',
    ),
    "PixArt": ("DiT", published.DIT_XL_2 | {"norm_type": "ada_norm_single"}, "norm_type"),
    "Flux-Fill": ("Flux", published.FLUX_DEV | {"in_channels": 384, "out_channels": 64}, "served: 384, as in_channels"),
    "σ for timesteps": ("pixels", published.DDPM_CIFAR | {"time_embedding_type": "fourier"}, "time_embedding_type"),
    "a learned variance": ("pixels", published.DDPM_CIFAR | {"out_channels": 6}, "out_channels is 6; served: 3"),
    "quantized weights": ("T5", published.T5_XXL | {"quantization_config": {"load_in_8bit": True}}, "no such key"),
    "another attention": ("CLIP", published.CLIP_L | {"attn_implementation": "eager"}, "attn_implementation"),
    "masked padding": ("CLIP", published.CLIP_L | {"use_attention_mask": True}, "use_attention_mask is true"),
    "two ends of text": ("CLIP", published.CLIP_L | {"eos_token_id": [2, 3]}, "eos_token_id .* a whole number"),
    "a decoder": ("T5", published.T5_XXL | {"is_decoder": True}, "is_decoder is true; served: false"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_would_be_drawn_otherwise_is_refused_by_name(what: str) -> None:
    name, config, says = OTHERS[what]
    network, keys = LISTS[name]
    with pytest.raises(InvalidPack, match=f"^the file: .*{says}"):
        check_keys(config, keys, "the file", defaults(network))
