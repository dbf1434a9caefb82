"""`cynosure train lora`: its file is one that is served, and an interrupted run ends as an unbroken one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from models.adapters import LoraFolder, LoraListing
from models.denoisers import load_denoiser
from models.pack import open_pack
from models.training.data import MissingData
from models.training.lora.__main__ import run
from models.training.lora.pictures import CaptionedImages
from tests.science.test_families import saved, stable_diffusion


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    dice = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(dice.integers(0, 255, (20, 30, 3), np.uint8)).save(folder / f"{number}.png")
    (folder / "0.txt").write_text("a red cat\n")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "1.png", "text": "a dog"}) + "\n")
    return folder


def trained(pack: Path, data: Path, out: Path, steps: int) -> dict[str, torch.Tensor]:
    given: dict[str, Any] = {"rank": 2, "layers": "attention", "batch": 2, "rate": 1e-2, "every": 2, "seed": 0}
    run(SimpleNamespace(pack=str(pack), data=data, out=out, caption="a bus", trigger="ink", steps=steps, **given))
    return load_file(out)


def test_a_resumed_run_writes_the_file_that_an_unbroken_one_writes_and_it_is_served(
    pictures: Path, tmp_path: Path
) -> None:
    _, pack = saved(stable_diffusion, tmp_path)
    whole = trained(pack, pictures, tmp_path / "loras" / "ink.safetensors", 4)
    first = trained(pack, pictures, tmp_path / "again" / "ink.safetensors", 2)
    resumed = trained(pack, pictures, tmp_path / "again" / "ink.safetensors", 4)
    assert whole.keys() == resumed.keys()
    assert all(tensor.dtype == torch.float16 for tensor in whole.values())
    assert any((whole[name] != first[name]).any() for name in whole)
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, resumed[name], atol=1e-3, rtol=1e-2)  # its rate falls at another step
    written = tmp_path / "loras" / "ink" / "training"
    assert [json.loads(line)["step"] for line in (written / "lora.loss.jsonl").read_text().splitlines()] == [4]
    with Image.open(written / "samples" / "000004.png") as grid:
        assert grid.size == (3 * 16, 2 * 16)
    base = load_denoiser(open_pack(str(pack)), torch.device("cpu")).adapter_base
    assert base is not None
    [listed] = LoraListing(LoraFolder(tmp_path / "loras")).look({"pack": base})["pack"]
    assert (listed.fault, listed.rank, listed.triggers, listed.family) == (None, 2, ("ink",), "Stable Diffusion 1")


def test_without_peft_the_extra_to_install_is_named(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingData, match=r"pip install 'cynosure\[train\]'"):
        trained(tmp_path, pictures, tmp_path / "ink.safetensors", 1)


def test_pictures_without_a_caption_and_files_that_are_none_are_named(pictures: Path, tmp_path: Path) -> None:
    read = CaptionedImages.read(pictures, (16, 8), channels=3, caption="a bus")
    assert (read.captions, read.images.shape) == (("a red cat", "a dog", "a bus"), (3, 3, 16, 8))
    with pytest.raises(MissingData, match=r"no caption \(2\.png\)"):
        CaptionedImages.read(pictures, (16, 8), channels=3)
    (pictures / "3.png").write_bytes(b"no picture")
    with pytest.raises(MissingData, match=r"3\.png can't be read"):
        CaptionedImages.read(pictures, (16, 8), channels=3, caption="a bus")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingData, match="holds no picture"):
        CaptionedImages.read(tmp_path / "empty", (16, 8), channels=3)
