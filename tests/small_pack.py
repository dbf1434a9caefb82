"""A pack that looks like `fashion` from outside, with small random networks: for tests that need no trained weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import UNet2DModel

from models.classifiers import NoiseAwareClassifier
from models.pack import PACKS_FOLDER


def write_small_pack(folder: Path) -> Path:
    """Write it into a new folder; its networks have every kind of layer of `fashion`'s, and a tenth of the weights."""
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
