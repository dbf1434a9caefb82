"""The keys of diffusers' networks, by the family that runs them."""

from __future__ import annotations

from models.configs.keys import HONOURED, METADATA, UNUSED, Keys, SameAs, honoured

UNET_2D: Keys = {
    **METADATA,
    **honoured("in_channels center_input_sample time_embedding_dim freq_shift flip_sin_to_cos"),
    **honoured("down_block_types mid_block_type up_block_types block_out_channels layers_per_block"),
    **honoured("mid_block_scale_factor downsample_padding downsample_type upsample_type act_fn attention_head_dim"),
    **honoured("norm_num_groups attn_norm_num_groups norm_eps resnet_time_scale_shift add_attention num_class_embeds"),
    "sample_size": int,
    "out_channels": SameAs("in_channels"),  # others learn the variance too, or take a second picture
    "time_embedding_type": ("positional",),  # "fourier" takes σ, and "learned" only whole timesteps
    "class_embed_type": (None,),  # labels are indices
    "num_train_timesteps": UNUSED,  # of "learned" timesteps
    "dropout": UNUSED,
}
"""`UNet2DModel` on pixels, called with timesteps and labels."""

_UNET_2D_CONDITION: Keys = {
    **METADATA,
    **honoured("in_channels out_channels sample_size center_input_sample flip_sin_to_cos freq_shift"),
    **honoured("down_block_types mid_block_type up_block_types block_out_channels layers_per_block"),
    **honoured("downsample_padding mid_block_scale_factor act_fn norm_num_groups norm_eps"),
    **honoured("cross_attention_dim transformer_layers_per_block reverse_transformer_layers_per_block"),
    **honoured("attention_head_dim use_linear_projection upcast_attention only_cross_attention"),
    **honoured("mid_block_only_cross_attention cross_attention_norm resnet_time_scale_shift resnet_skip_time_act"),
    **honoured("resnet_out_scale_factor time_embedding_dim time_embedding_act_fn timestep_post_act"),
    **honoured("conv_in_kernel conv_out_kernel"),
    "num_attention_heads": (None,),  # the class refuses it, too
    "dual_cross_attention": (False, None),  # Versatile Diffusion: two conditions, one after the other
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),  # the noise level of an upscaler
    "class_embeddings_concat": (False, None),
    "addition_embed_type": (None,),
    "addition_time_embed_dim": UNUSED,  # both are of addition_embed_type "text_time"
    "projection_class_embeddings_input_dim": UNUSED,
    "addition_embed_type_num_heads": UNUSED,  # of "text"
    "time_embedding_type": ("positional",),
    "time_cond_proj_dim": (None,),
    "attention_type": ("default",),  # others are GLIGEN's, and take boxes
    "dropout": UNUSED,
}

STABLE_DIFFUSION_UNET: Keys = {
    **_UNET_2D_CONDITION,
    "encoder_hid_dim": HONOURED,
    "encoder_hid_dim_type": (None, "text_proj"),  # others take a picture's embedding
    "time_cond_proj_dim": HONOURED,  # latent consistency models: the guidance scale is an input
}
"""`UNet2DConditionModel` on latents, called with timesteps and the text's states."""

XL_UNET: Keys = {
    **STABLE_DIFFUSION_UNET,
    "addition_embed_type": ("text_time",),
    "addition_time_embed_dim": HONOURED,
    "projection_class_embeddings_input_dim": HONOURED,
}
"""The same, called with a pooled text vector and sizes as well."""

CONTROLNET: Keys = {
    **METADATA,
    **honoured("in_channels flip_sin_to_cos freq_shift down_block_types mid_block_type block_out_channels"),
    **honoured(
        "layers_per_block only_cross_attention downsample_padding mid_block_scale_factor act_fn norm_num_groups"
    ),
    **honoured("norm_eps cross_attention_dim transformer_layers_per_block attention_head_dim num_attention_heads"),
    **honoured("use_linear_projection upcast_attention resnet_time_scale_shift conditioning_embedding_out_channels"),
    **honoured("controlnet_conditioning_channel_order addition_time_embed_dim projection_class_embeddings_input_dim"),
    "conditioning_channels": (3,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "addition_embed_type": (None, "text_time"),
    "addition_embed_type_num_heads": UNUSED,  # of "text"
    "global_pool_conditions": (False,),  # reference pictures, which steer only conditional rows
}
"""`ControlNetModel` beside a UNet of Stable Diffusion 1, 2 or XL."""

SD3_CONTROLNET: Keys = {
    **METADATA,
    **honoured("sample_size patch_size in_channels num_layers attention_head_dim num_attention_heads"),
    **honoured("joint_attention_dim caption_projection_dim pooled_projection_dim pos_embed_max_size"),
    **honoured("dual_attention_layers qk_norm pos_embed_type use_pos_embed force_zeros_for_pooled_projection"),
    "out_channels": UNUSED,
    "extra_conditioning_channels": (0,),  # those for inpainting take the mask as well
}
"""`SD3ControlNetModel`."""

FLUX_CONTROLNET: Keys = {
    **METADATA,
    **honoured("in_channels num_layers num_single_layers attention_head_dim num_attention_heads joint_attention_dim"),
    **honoured("pooled_projection_dim guidance_embeds axes_dims_rope patch_size conditioning_embedding_channels"),
    "out_channels": UNUSED,  # of the transformer that it was made from
    "num_mode": (None,),  # union: one network for several kinds of pictures, of which a request names one
}
"""`FluxControlNetModel`."""

PROMPTED_UNET: Keys = {
    **_UNET_2D_CONDITION,
    "sample_size": int,
    "out_channels": SameAs("in_channels"),
    "class_embed_type": ("projection",),
    "class_embeddings_concat": HONOURED,
    "projection_class_embeddings_input_dim": HONOURED,
}
"""`UNet2DConditionModel` on pixels, called with a vector of prompt and style as class label, and without states."""

DIT: Keys = {
    **METADATA,
    **honoured("in_channels out_channels num_layers num_attention_heads attention_head_dim attention_bias patch_size"),
    **honoured("activation_fn num_embeds_ada_norm upcast_attention norm_elementwise_affine norm_eps"),
    "sample_size": int,
    "norm_type": ("ada_norm_zero",),
    "dropout": UNUSED,
    "norm_num_groups": UNUSED,
    # of Transformer2DModel, DiT's class before diffusers 0.30:
    "cross_attention_dim": (None,),
    "num_vector_embeds": (None,),
    "double_self_attention": (False,),
    "only_cross_attention": (False,),
    "attention_type": ("default",),
    "caption_channels": (None,),
    "use_additional_conditions": (None, False),
    "interpolation_scale": (None,),
    "use_linear_projection": UNUSED,
}

SD3_TRANSFORMER: Keys = {
    **METADATA,
    **honoured("patch_size in_channels num_layers attention_head_dim num_attention_heads joint_attention_dim"),
    **honoured("caption_projection_dim pooled_projection_dim pos_embed_max_size dual_attention_layers qk_norm"),
    "sample_size": int,
    "out_channels": SameAs("in_channels"),
}

FLUX_TRANSFORMER: Keys = {
    **METADATA,
    **honoured("in_channels num_layers num_single_layers attention_head_dim num_attention_heads joint_attention_dim"),
    **honoured("pooled_projection_dim guidance_embeds axes_dims_rope"),
    "patch_size": (1,),  # the pipeline packs patches of 2×2 itself
    "out_channels": SameAs("in_channels"),  # those of Flux-Fill and Flux-Control take a second picture
}

AUTOENCODER: Keys = {
    **METADATA,
    **honoured("down_block_types up_block_types block_out_channels layers_per_block act_fn norm_num_groups"),
    **honoured("latent_channels scaling_factor use_quant_conv use_post_quant_conv mid_block_add_attention"),
    **honoured("force_upcast sample_size"),  # in float16; of tiles
    "in_channels": SameAs("out_channels"),
    "out_channels": (3, 1),
    "shift_factor": (None, 0),
    "latents_mean": (None,),
    "latents_std": (None,),
}
"""`AutoencoderKL` of Stable Diffusion 1 and 2 and of DiT, whose pipelines only scale its latents."""

XL_AUTOENCODER: Keys = {**AUTOENCODER, **honoured("latents_mean latents_std")}
FLOW_AUTOENCODER: Keys = {**AUTOENCODER, **honoured("shift_factor")}
"""Of Stable Diffusion 3 and Flux."""
