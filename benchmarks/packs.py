"""Packs for the benchmarks, including networks of published sizes with random weights.

A network's speed does not depend on its weights.
"""

from __future__ import annotations

import json
import shutil
import string
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    PNDMScheduler,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from models.importing.adm import PRESETS, Preset, import_adm
from models.networks import AdmClassifier, AdmUNet
from models.pack import Pack, open_pack

FOLDER = Path("out/bench/packs")
LETTERS = string.ascii_lowercase
AUTOENCODER_8: Mapping[str, Any] = {  # of Stable Diffusion 1, which DiT has, too
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
DIT: Mapping[str, Any] = {
    "num_attention_heads": 16,
    "in_channels": 4,
    "out_channels": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero",
}


def random_adm(folder: Path, preset: Preset) -> None:
    """Write a pack of ADM networks with random weights, in a published configuration or a smaller one."""
    with tempfile.TemporaryDirectory() as checkpoints:
        unet, classifier = (Path(checkpoints, name) for name in ("unet.pt", "classifier.pt"))
        torch.save(AdmUNet(**preset.unet).state_dict(), unet)
        torch.save(AdmClassifier(**(preset.classifier or {})).state_dict(), classifier)
        import_adm(unet, folder, preset, classifier=classifier)


def letters_tokenizer(max_length: int) -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary of single letters instead of words."""
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    with tempfile.TemporaryDirectory() as vocabulary:
        Path(vocabulary, "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
        Path(vocabulary, "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(vocabulary, model_max_length=max_length)


def random_stable_diffusion(
    folder: Path, *, unet: UNet2DConditionModel, vae: AutoencoderKL, text: CLIPTextConfig
) -> None:
    """Write a Stable Diffusion 1 folder with `letters_tokenizer`; `text` must have room for its vocabulary."""
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    components = {
        "unet": unet,
        "vae": vae,
        "text_encoder": CLIPTextModel(text),
        "tokenizer": letters_tokenizer(text.max_position_embeddings),
        "scheduler": scheduler,
    }
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline"}
    for name, component in components.items():
        component.save_pretrained(folder / name)
        index[name] = [type(component).__module__.partition(".")[0], type(component).__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def _adm_256(folder: Path) -> None:
    random_adm(folder, PRESETS["imagenet256"])


def _stable_diffusion_15(folder: Path) -> None:
    """Rombach et al. 2022, in the configuration of version 1.5: 860M parameters on latents (4, 64, 64)."""
    random_stable_diffusion(
        folder,
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        vae=AutoencoderKL(**AUTOENCODER_8, sample_size=512),
        text=CLIPTextConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            projection_dim=768,
            bos_token_id=0,
            eos_token_id=1,
        ),
    )


def _stable_diffusion_small(folder: Path) -> None:
    """Stable Diffusion 1 in its published shape with half the widths, on latents (4, 16, 16)."""
    random_stable_diffusion(
        folder,
        unet=UNet2DConditionModel(sample_size=16, block_out_channels=(160, 320, 640, 640), cross_attention_dim=768),
        vae=AutoencoderKL(
            block_out_channels=(32, 64, 64, 64),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            sample_size=128,
        ),
        text=CLIPTextConfig(
            hidden_size=768,
            intermediate_size=768,
            num_hidden_layers=1,
            num_attention_heads=12,
            projection_dim=768,
            bos_token_id=0,
            eos_token_id=1,
        ),
    )


def _stable_diffusion_tiny(folder: Path) -> None:
    """Stable Diffusion 1 with 1.5M parameters on latents (4, 8, 8), and prompts of 77 tokens as published."""
    random_stable_diffusion(
        folder,
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
        ),
        vae=AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            sample_size=16,
        ),
        text=CLIPTextConfig(
            hidden_size=32,
            intermediate_size=128,
            num_hidden_layers=5,
            num_attention_heads=4,
            projection_dim=32,
            bos_token_id=0,
            eos_token_id=1,
        ),
    )


def _adm_tiny(folder: Path) -> None:
    small = {"image_size": 32, "model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2)}
    small |= {"attention_resolutions": (16,), "num_head_channels": 32}
    random_adm(folder, Preset(unet=small, classifier=small))


def _dit(folder: Path, transformer: DiTTransformer2DModel, vae: AutoencoderKL) -> None:
    """Peebles & Xie 2023: class-conditional on latents, with a learnt variance."""
    pipeline = DiTPipeline(transformer, vae, DDIMScheduler(), id2label={n: f"class {n}" for n in range(1000)})
    pipeline.save_pretrained(folder)


def _dit_xl(folder: Path) -> None:
    """DiT-XL/2 for 256x256 pictures: 675M parameters on latents (4, 32, 32)."""
    transformer = DiTTransformer2DModel(**DIT, sample_size=32, num_layers=28, attention_head_dim=72)
    _dit(folder, transformer, AutoencoderKL(**AUTOENCODER_8, sample_size=256))


def _dit_tiny(folder: Path) -> None:
    transformer = DiTTransformer2DModel(**DIT, sample_size=8, num_layers=2, attention_head_dim=8)
    _dit(folder, transformer, AutoencoderKL(block_out_channels=(32,), latent_channels=4, sample_size=8))


PUBLISHED: Mapping[str, Callable[[Path], None]] = {
    "adm-256": _adm_256,
    "adm-tiny": _adm_tiny,
    "dit-tiny": _dit_tiny,
    "dit-xl": _dit_xl,
    "sd-1.5": _stable_diffusion_15,
    "sd-small": _stable_diffusion_small,
    "sd-tiny": _stable_diffusion_tiny,
}
"""Functions that write a pack of a published size, or of a published shape in small, by name."""


def benchmark_pack(name: str) -> Pack:
    """Open a pack by name or folder; one of `PUBLISHED` is first written to `FOLDER` if it does not exist."""
    if name not in PUBLISHED:
        return open_pack(name)
    folder = FOLDER / name
    if not folder.is_dir():
        unfinished = FOLDER / f"{name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        torch.manual_seed(0)
        PUBLISHED[name](unfinished)
        unfinished.rename(folder)
    return open_pack(str(folder))


def add_pack_options(parser: ArgumentParser) -> None:
    """Add the options for the pack and the device."""
    parser.add_argument("--pack", default="fashion", help=f"name or folder, or random {' or '.join(PUBLISHED)}")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="torch device")
