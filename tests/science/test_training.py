"""The trainer: an interrupted run ends where an unbroken one does, and the command makes a pack that can be served."""

from __future__ import annotations

import dataclasses
import gzip
import json
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cynosure.programs import program
from harness.processes import clean_environment
from models.pack import open_pack
from models.training.data import LabelledImages, MissingData, load_fashion_mnist
from models.training.loop import LoopConfig, train

CONFIG = LoopConfig(
    steps=12,
    batch_size=4,
    learning_rate=1e-2,
    warmup_steps=3,
    decay_fraction=0.25,
    weight_decay=0.01,
    ema_decay=0.9,
    seed=0,
    log_every=4,
    checkpoint_every=4,
)


@dataclass
class Line:
    """Fits a line to noised pictures: the smallest thing that has weights, a loss and randomness."""

    network: nn.Linear

    def loss(self, batch: LabelledImages, generator: torch.Generator) -> Tensor:
        noised = batch.images.float() + torch.randn(batch.images.shape, generator=generator)
        return (self.network(noised.flatten(1)).squeeze(1) - batch.labels).square().mean()

    def save(self, folder: Path) -> None:
        save_file(
            {name: value.clone() for name, value in self.network.state_dict().items()}, folder / "line.safetensors"
        )


def fresh_line() -> Line:
    torch.manual_seed(0)
    return Line(nn.Linear(16, 1))


@pytest.fixture
def pictures() -> LabelledImages:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 4, (40, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return LabelledImages(images, torch.randint(0, 10, (40,), generator=generator))


def test_an_interrupted_run_ends_where_an_unbroken_one_does(pictures: LabelledImages, tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    train(fresh_line(), pictures, CONFIG, unbroken, name="line")

    class Killed(Exception):
        pass

    def kill(step: int) -> None:
        if step == 8:
            raise Killed

    with pytest.raises(Killed):
        train(fresh_line(), pictures, CONFIG, broken, name="line", on_checkpoint=kill)
    train(fresh_line(), pictures, CONFIG, broken, name="line")
    for name, value in load_file(unbroken / "line.safetensors").items():
        assert torch.equal(load_file(broken / "line.safetensors")[name], value), name


def test_the_rate_warms_up_holds_and_falls_to_zero() -> None:
    factors = [CONFIG.rate_factor(step) for step in range(13)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert factors[3:10] == [1.0] * 7
    assert factors[10:] == pytest.approx([2 / 3, 1 / 3, 0.0])


def test_a_run_may_be_lengthened(pictures: LabelledImages, tmp_path: Path) -> None:
    train(fresh_line(), pictures, CONFIG, tmp_path, name="line")
    train(fresh_line(), pictures, dataclasses.replace(CONFIG, steps=16), tmp_path, name="line")
    steps = [json.loads(line)["step"] for line in (tmp_path / "training/line.loss.jsonl").read_text().splitlines()]
    assert steps == [4, 8, 12, 16]


def test_missing_data_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="apt-get install dataset-fashion-mnist"):
        load_fashion_mnist("train", tmp_path)


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def test_the_command_makes_a_pack_with_grid_losses_and_judge(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 160), ("t10k", 140)):
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", generator.integers(0, 256, (count, 28, 28)))
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    folder = tmp_path / "pack"
    options = ("--steps", "2", "--data", str(tmp_path), "-o", str(folder))
    command = program("models.training", "fashion", *options)
    answer = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    assert (folder / "training/samples/000002.png").is_file()
    assert (folder / "training/diffusion.loss.jsonl").is_file()
    assert (folder / "judge/reference.safetensors").is_file()
    pack = open_pack(str(folder))
    assert pack.has_classifier
    assert len(pack.labels) == 10
