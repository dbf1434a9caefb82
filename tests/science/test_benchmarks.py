"""Benchmarks draw with packs of any size: small ones here, of the families that the large ones are of."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.engine import specs_of
from benchmarks.packs import PUBLISHED
from benchmarks.peers.drawing import PlainPipeline
from benchmarks.stream import mixed_stream
from cynosure.contract import GenerateRequest
from cynosure.resolving import resolve
from models.calibration.result import fixed_calibration
from models.engine import Engine
from models.pack import open_pack
from workers.drawing.cards import card_of

REQUESTS = 6


@pytest.mark.parametrize(
    ("write", "modes"),
    [(PUBLISHED["adm-tiny"], {"none", "classifier"}), (PUBLISHED["sd-tiny"], {"none", "classifier_free"})],
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
