"""Packs with small random networks, for tests that need no trained weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel, UNet2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.packs import letters_tokenizer
from models.classifiers import NoiseAwareClassifier
from models.pack import PACKS_FOLDER


def write_small_pack(folder: Path) -> Path:
    """Write a pack that looks like `fashion` from outside into a new folder.

    Its networks have every kind of layer of `fashion`'s, and a tenth of the weights.
    """
    bundled = PACKS_FOLDER / "fashion"
    folder.mkdir(parents=True)
    index = json.loads((bundled / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler").mkdir()
    for config in (bundled / "scheduler").iterdir():
        (folder / "scheduler" / config.name).write_bytes(config.read_bytes())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=14,
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=16,
            norm_num_groups=4,
            num_class_embeds=11,
            resnet_time_scale_shift="scale_shift",
        )
        unet.conv_out.weight.data *= 0.3  # or its pictures are black and white, and hide differences
        unet.save_pretrained(folder / "unet")
        NoiseAwareClassifier(block_out_channels=(32, 32), attention_head_dim=16, mid_attention=False).save_pretrained(
            folder / "classifier"
        )
    return folder


def write_small_xl(folder: Path, *, side: int) -> Path:
    """Write a Stable Diffusion XL folder whose own pictures are squares of `side` pixels, eight to one latent."""
    channels = (8, 8, 16, 16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            block_out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            latent_channels=4,
            norm_num_groups=4,
            mid_block_add_attention=False,  # its memory grows with the square of the pixels
        )
        unet = UNet2DConditionModel(
            sample_size=side // 8,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=2,
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
        )
        texts = CLIPTextConfig(
            vocab_size=54,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            projection_dim=16,
            bos_token_id=0,
            eos_token_id=1,
        )
        StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=CLIPTextModel(texts),
            text_encoder_2=CLIPTextModelWithProjection(texts),
            tokenizer=letters_tokenizer(16),
            tokenizer_2=letters_tokenizer(16),
            unet=unet,
            scheduler=DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear"),
            add_watermarker=False,
        ).save_pretrained(folder)
    return folder
