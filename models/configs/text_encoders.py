"""The keys of transformers' encoders: of texts, called with token ids, and of pictures; for states and pooled vectors.

transformers sets every key of the file as an attribute of the configuration, known or not.
"""

from __future__ import annotations

from models.configs.keys import METADATA, UNUSED, Keys, honoured, unused

_ANY_ENCODER: Keys = {
    **METADATA,
    **unused("architectures transformers_version dtype torch_dtype id2label label2id problem_type"),
    **unused("_attn_implementation_autoset gradient_checkpointing initializer_range initializer_factor"),
    **unused("output_attentions output_hidden_states pad_token_id use_cache tie_word_embeddings classifier_dropout"),
    "return_dict": (True,),
    "chunk_size_feed_forward": (0,),  # chunks would sum in another order
    "is_decoder": (False,),  # a decoder's attention sees no later tokens
    "is_encoder_decoder": (False,),
}

CLIP_TEXT: Keys = {
    **_ANY_ENCODER,
    **honoured("vocab_size hidden_size intermediate_size projection_dim num_hidden_layers"),
    **honoured("num_attention_heads max_position_embeddings hidden_act layer_norm_eps"),
    **unused("attention_dropout dropout bos_token_id"),
    "model_type": ("clip_text_model",),
    "eos_token_id": int,  # where the pooled vector is taken
    "use_attention_mask": (False, None),
}

CLIP_VISION: Keys = {
    **_ANY_ENCODER,
    **honoured("hidden_size intermediate_size projection_dim num_hidden_layers num_attention_heads"),
    **honoured("patch_size hidden_act layer_norm_eps"),
    **unused("attention_dropout dropout"),
    "model_type": ("clip_vision_model",),
    "image_size": int,
    "num_channels": (3,),
}
"""`CLIPVisionModelWithProjection` beside an IP-Adapter."""

T5_ENCODER: Keys = {
    **_ANY_ENCODER,
    **honoured("vocab_size d_model d_kv d_ff num_layers num_heads"),
    **honoured("relative_attention_num_buckets relative_attention_max_distance"),
    **honoured("layer_norm_epsilon feed_forward_proj dense_act_fn is_gated_act"),
    **unused("dropout_rate eos_token_id num_decoder_layers decoder_start_token_id scale_decoder_outputs"),
    **unused("output_past n_positions task_specific_params"),
    "model_type": ("t5",),
    "is_encoder_decoder": UNUSED,  # the encoder's class sets it
}

BERT: Keys = {
    **_ANY_ENCODER,
    **honoured("vocab_size hidden_size intermediate_size num_hidden_layers"),
    **honoured("num_attention_heads max_position_embeddings type_vocab_size"),
    **honoured("hidden_act layer_norm_eps"),
    **unused("hidden_dropout_prob attention_probs_dropout_prob bos_token_id eos_token_id"),
    "model_type": ("bert",),
    "add_cross_attention": (False,),
    "position_embedding_type": ("absolute",),
}
