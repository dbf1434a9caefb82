"""Benchmarks draw with packs of any size: small ones here, of the families that the large ones are of."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig

from benchmarks.engine import specs_of
from benchmarks.packs import random_adm, random_stable_diffusion
from benchmarks.peers.drawing import PlainPipeline
from benchmarks.stream import mixed_stream
from cynosure.contract import GenerateRequest
from cynosure.resolving import resolve
from models.calibration.result import fixed_calibration
from models.engine import Engine
from models.importing.adm import Preset
from models.pack import open_pack
from workers.drawing.cards import card_of

REQUESTS = 6


def adm(folder: Path) -> None:
    small = {"image_size": 32, "model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2)}
    small |= {"attention_resolutions": (16,), "num_head_channels": 32}
    random_adm(folder, Preset(unet=small, classifier=small))


def stable_diffusion(folder: Path) -> None:
    random_stable_diffusion(
        folder,
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
        ),
        vae=AutoencoderKL(block_out_channels=(32,), latent_channels=4, sample_size=8),
        text=CLIPTextConfig(
            vocab_size=54,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=0,
            eos_token_id=1,
        ),
    )


@pytest.mark.parametrize(
    ("write", "modes"),
    [(adm, {"none", "classifier"}), (stable_diffusion, {"none", "classifier_free"})],
    ids=["ADM", "Stable Diffusion"],
)
def test_every_contender_draws_the_stream_of_a_pack(
    write: Callable[[Path], None], modes: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    write(tmp_path / "small")
    monkeypatch.setenv("CYNOSURE_BENCH_PACK", str(tmp_path / "small"))
    monkeypatch.setenv("CYNOSURE_BENCH_FLOAT32", "true")
    pack, peer = open_pack(str(tmp_path / "small")), PlainPipeline()
    stream = [one for one in itertools.islice(mixed_stream(pack, seed=1), 10 * REQUESTS) if one.steps == 4][:REQUESTS]
    assert {asked.mode for asked in stream} == modes
    with Engine([str(pack.folder)], precision="float32", calibrate=fixed_calibration) as engine:
        for asked in stream:
            resolve(GenerateRequest(**asked.body()), card_of(engine.packs[pack.name]), seed=0)
            pictures = engine.generate(specs_of(asked, pack))
            [encoded] = peer.draw([asked])
            assert len(encoded) == len(pictures) == asked.count
            for picture, png in zip(pictures, encoded, strict=True):
                with Image.open(io.BytesIO(base64.b64decode(png))) as image:
                    assert image.size == (picture.shape[1], picture.shape[0])
