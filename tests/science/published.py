"""Configurations of published models as they are on the hub: keys and values that matter, no weights."""

from __future__ import annotations

from typing import Any

_DOWN, _CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
_UP, _CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"

UNET_1_4: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.2.2", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 768,
    "down_block_types": [_CROSS_DOWN, _CROSS_DOWN, _CROSS_DOWN, _DOWN], "downsample_padding": 1,
    "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1,
    "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    "up_block_types": [_UP, _CROSS_UP, _CROSS_UP, _CROSS_UP],
}  # fmt: skip
UNET_1_5 = UNET_1_4 | {"_diffusers_version": "0.6.0"}
UNET_2_0 = UNET_1_4 | {
    "_diffusers_version": "0.8.0", "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024,
    "dual_cross_attention": False, "only_cross_attention": False, "use_linear_projection": True,
}  # fmt: skip
UNET_2_1 = UNET_2_0 | {
    "_diffusers_version": "0.10.0.dev0", "num_class_embeds": None, "sample_size": 96, "upcast_attention": True,
}  # fmt: skip
UNET_XL: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.19.0.dev0", "act_fn": "silu",
    "addition_embed_type": "text_time", "addition_embed_type_num_heads": 64, "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280], "center_input_sample": False,
    "class_embed_type": None, "class_embeddings_concat": False, "conv_in_kernel": 3, "conv_out_kernel": 3,
    "cross_attention_dim": 2048, "cross_attention_norm": None, "down_block_types": [_DOWN, _CROSS_DOWN, _CROSS_DOWN],
    "downsample_padding": 1, "dual_cross_attention": False, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
    "mid_block_only_cross_attention": None, "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05, "norm_num_groups": 32, "num_attention_heads": None, "num_class_embeds": None,
    "only_cross_attention": False, "out_channels": 4, "projection_class_embeddings_input_dim": 2816,
    "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False, "resnet_time_scale_shift": "default",
    "sample_size": 128, "time_cond_proj_dim": None, "time_embedding_act_fn": None, "time_embedding_dim": None,
    "time_embedding_type": "positional", "timestep_post_act": None, "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": [_CROSS_UP, _CROSS_UP, _UP], "upcast_attention": None, "use_linear_projection": True,
}  # fmt: skip
UNET_XL_TURBO = UNET_XL | {
    "_diffusers_version": "0.24.0.dev0", "attention_type": "default", "dropout": 0.0, "sample_size": 64,
    "reverse_transformer_layers_per_block": None,
}  # fmt: skip
UNET_LCM = UNET_1_4 | {"_diffusers_version": "0.22.0.dev0", "time_cond_proj_dim": 256}

AUTOENCODER_1: dict[str, Any] = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.2.2", "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3,
    "latent_channels": 4, "layers_per_block": 2, "out_channels": 3, "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
AUTOENCODER_1_5 = AUTOENCODER_1 | {"_diffusers_version": "0.6.0", "norm_num_groups": 32}
AUTOENCODER_2_1 = AUTOENCODER_1_5 | {"_diffusers_version": "0.10.0.dev0", "sample_size": 768}
AUTOENCODER_XL = AUTOENCODER_1_5 | {
    "_diffusers_version": "0.20.0.dev0", "_name_or_path": "../sdxl-vae/", "force_upcast": True, "sample_size": 1024,
    "scaling_factor": 0.13025,
}  # fmt: skip
AUTOENCODER_3 = AUTOENCODER_1_5 | {
    "_diffusers_version": "0.29.0.dev0", "force_upcast": True, "latent_channels": 16, "latents_mean": None,
    "latents_std": None, "sample_size": 1024, "scaling_factor": 1.5305, "shift_factor": 0.0609,
    "use_post_quant_conv": False, "use_quant_conv": False,
}  # fmt: skip
AUTOENCODER_FLUX = AUTOENCODER_3 | {
    "_diffusers_version": "0.30.0.dev0", "_name_or_path": "../checkpoints/flux-dev", "mid_block_add_attention": True,
    "scaling_factor": 0.3611, "shift_factor": 0.1159,
}  # fmt: skip

SD3_MEDIUM: dict[str, Any] = {
    "_class_name": "SD3Transformer2DModel", "_diffusers_version": "0.29.0.dev0", "attention_head_dim": 64,
    "caption_projection_dim": 1536, "in_channels": 16, "joint_attention_dim": 4096, "num_attention_heads": 24,
    "num_layers": 24, "out_channels": 16, "patch_size": 2, "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
    "sample_size": 128,
}  # fmt: skip
SD3_5_MEDIUM = SD3_MEDIUM | {
    "_diffusers_version": "0.31.0.dev0", "dual_attention_layers": [*range(13)], "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
}  # fmt: skip
FLUX_DEV: dict[str, Any] = {
    "_class_name": "FluxTransformer2DModel", "_diffusers_version": "0.30.0.dev0",
    "_name_or_path": "../checkpoints/flux-dev/transformer", "attention_head_dim": 128, "guidance_embeds": True,
    "in_channels": 64, "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 19,
    "num_single_layers": 38, "patch_size": 1, "pooled_projection_dim": 768,
}  # fmt: skip
FLUX_SCHNELL = FLUX_DEV | {"guidance_embeds": False, "out_channels": None, "axes_dims_rope": [16, 56, 56]}
DIT_XL_2: dict[str, Any] = {
    "_class_name": "Transformer2DModel", "_diffusers_version": "0.12.0.dev0", "activation_fn": "gelu-approximate",
    "attention_bias": True, "attention_head_dim": 72, "cross_attention_dim": None, "double_self_attention": False,
    "dropout": 0.0, "in_channels": 4, "norm_elementwise_affine": False, "norm_num_groups": 32,
    "norm_type": "ada_norm_zero", "num_attention_heads": 16, "num_embeds_ada_norm": 1000, "num_layers": 28,
    "num_vector_embeds": None, "only_cross_attention": False, "out_channels": 8, "patch_size": 2, "sample_size": 32,
    "upcast_attention": False, "use_linear_projection": False,
}  # fmt: skip
DDPM_CIFAR: dict[str, Any] = {
    "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "act_fn": "silu", "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256], "center_input_sample": False,
    "down_block_types": [_DOWN, "AttnDownBlock2D", _DOWN, _DOWN], "downsample_padding": 0, "flip_sin_to_cos": False,
    "freq_shift": 1, "in_channels": 3, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-06,
    "norm_num_groups": 32, "out_channels": 3, "sample_size": 32, "time_embedding_type": "positional",
    "up_block_types": [_UP, _UP, "AttnUpBlock2D", _UP],
}  # fmt: skip

CLIP_L: dict[str, Any] = {
    "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"], "attention_dropout": 0.0,
    "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768,
    "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12,
    "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768, "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0", "vocab_size": 49408,
}  # fmt: skip
CLIP_H = CLIP_L | {
    "hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
    "num_hidden_layers": 23, "projection_dim": 512,
}  # fmt: skip
CLIP_BIG_G = CLIP_L | {
    "architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu", "hidden_size": 1280,
    "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32, "projection_dim": 1280,
    "torch_dtype": "float16",
}  # fmt: skip
CLIP_VISION_H: dict[str, Any] = {
    "_name_or_path": "./image_encoder", "architectures": ["CLIPVisionModelWithProjection"], "attention_dropout": 0.0,
    "dropout": 0.0, "hidden_act": "gelu", "hidden_size": 1280, "image_size": 224, "initializer_factor": 1.0,
    "initializer_range": 0.02, "intermediate_size": 5120, "layer_norm_eps": 1e-05, "model_type": "clip_vision_model",
    "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 32, "patch_size": 14, "projection_dim": 1024,
    "torch_dtype": "float16", "transformers_version": "4.28.0.dev0",
}  # fmt: skip
T5_XXL: dict[str, Any] = {
    "_name_or_path": "google/t5-v1_1-xxl", "architectures": ["T5EncoderModel"], "classifier_dropout": 0.0,
    "d_ff": 10240, "d_kv": 64, "d_model": 4096, "decoder_start_token_id": 0, "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0,
    "is_encoder_decoder": True, "is_gated_act": True, "layer_norm_epsilon": 1e-06, "model_type": "t5",
    "num_decoder_layers": 24, "num_heads": 64, "num_layers": 24, "output_past": True, "pad_token_id": 0,
    "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.41.2", "use_cache": True, "vocab_size": 32128,
}  # fmt: skip


def _index(pipeline: str, components: str, **more: Any) -> dict[str, Any]:
    """A `model_index.json`; the library and class of a component are left to the components' own files."""
    listed = {name: ["a library", "a class"] for name in components.split()}
    return {"_class_name": pipeline, "_diffusers_version": "0.30.0.dev0", **listed, **more}


_NONE = [None, None]
_ONE_TEXT = "unet vae text_encoder tokenizer scheduler feature_extractor"
_TWO_TEXTS = "vae text_encoder tokenizer text_encoder_2 tokenizer_2 scheduler"
INDICES: dict[str, dict[str, Any]] = {
    "Stable Diffusion 1.4": _index("StableDiffusionPipeline", f"{_ONE_TEXT} safety_checker"),
    "Stable Diffusion 1.5 for inpainting": _index("StableDiffusionInpaintPipeline", f"{_ONE_TEXT} safety_checker"),
    "Stable Diffusion 2.1": _index(
        "StableDiffusionPipeline", _ONE_TEXT, safety_checker=_NONE, requires_safety_checker=False
    ),
    "Stable Diffusion Turbo": _index(
        "StableDiffusionPipeline", _ONE_TEXT, safety_checker=_NONE, image_encoder=_NONE, requires_safety_checker=True
    ),
    "Stable Diffusion XL": _index(
        "StableDiffusionXLPipeline", f"unet {_TWO_TEXTS}", force_zeros_for_empty_prompt=True, add_watermarker=None
    ),
    "Stable Diffusion XL Turbo": _index(
        "StableDiffusionXLPipeline",
        f"unet {_TWO_TEXTS}",
        feature_extractor=_NONE,
        force_zeros_for_empty_prompt=True,
        image_encoder=_NONE,
    ),
    "LCM Dreamshaper 7": _index(
        "LatentConsistencyModelPipeline", f"{_ONE_TEXT} safety_checker", requires_safety_checker=True
    ),
    "Stable Diffusion 3": _index("StableDiffusion3Pipeline", f"transformer {_TWO_TEXTS} text_encoder_3 tokenizer_3"),
    "Flux": _index("FluxPipeline", f"transformer {_TWO_TEXTS}"),
    "DiT": _index("DiTPipeline", "transformer vae scheduler", id2label={"0": "tench"}),
    "DDPM": _index("DDPMPipeline", "unet scheduler"),
}
