"""The trainer against a plain loop: the same network, batch and pictures, turn by turn in one run.

    python -m benchmarks.trainer --pictures FOLDER [--compile]

The plain loop is a tutorial's: it opens and scales every picture in every step, and multiplies in float32. The trainer
takes pictures from its array and multiplies in bfloat16; it also keeps an average of the weights, which the plain loop
does not.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from torch import Tensor
from torch.nn import functional

from models.training.data import LabelledImages
from models.training.diffusion import DiffusionTask
from models.training.loop import train
from models.training.own.folders import pictures_in
from models.training.own.pictures import read_pictures
from models.training.own.presets import PRESETS, run_of
from models.training.own.recipe import denoiser

SIDE, FOLD, BATCH = 32, 2, 64


def network(classes: int) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(**denoiser(PRESETS["tiny"], SIDE // FOLD, 3 * FOLD**2, classes=classes, text=False))


class PlainLoop:
    """What a tutorial has."""

    def __init__(self, folder: Path) -> None:
        found = pictures_in(folder).pictures
        self.names = sorted({str(one.label) for one in found})
        self.files = [(one.path, self.names.index(str(one.label))) for one in found]
        self.network = network(len(self.names)).train()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4)
        self.scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
        self.batches = self._batches()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        chance = random.Random(0)
        while True:
            chosen = chance.sample(self.files, BATCH)
            arrays = [np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE))) for path, _ in chosen]
            pictures = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
            yield pictures.float() / 127.5 - 1, torch.tensor([label for _, label in chosen])

    def run(self, steps: int) -> None:
        for _ in range(steps):
            pictures, labels = next(self.batches)
            x_0 = functional.pixel_unshuffle(pictures, FOLD)
            noise, timesteps = torch.randn_like(x_0), torch.randint(0, 1000, (BATCH,))
            dropped = torch.where(torch.rand(BATCH) < 0.1, len(self.names), labels)
            noised = self.scheduler.add_noise(x_0, noise, timesteps)
            output = self.network(noised, timesteps, class_labels=dropped).sample
            loss = functional.mse_loss(output, self.scheduler.get_velocity(x_0, noise, timesteps))
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()


class Trainer:
    """`cynosure train folder`'s loop, without its checkpoints."""

    def __init__(self, data: LabelledImages, classes: int, *, compiled: bool) -> None:
        self.data, self.compiled = data, compiled
        self.task = DiffusionTask(
            network=network(classes),
            scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
            pixel_unshuffle=FOLD,
            null_label=classes,
            label_dropout=0.1,
            min_snr=5.0,
        )
        self.task.save = lambda folder: None  # type: ignore[method-assign]  # the plain loop saves nothing

    def run(self, steps: int) -> None:
        config = run_of(steps=steps, batch=BATCH, rate=1e-4, ema=0.998, seed=0, every=10_000)
        with tempfile.TemporaryDirectory() as folder:
            train(self.task, self.data, config, Path(folder), name="diffusion", compile_network=self.compiled)
            self.compiled = False  # it stays compiled


def seconds(loop: PlainLoop | Trainer, steps: int) -> float:
    began = time.perf_counter()
    loop.run(steps)
    return (time.perf_counter() - began) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="a folder for each class")
    parser.add_argument("--steps", type=int, default=20, help="of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    pictures = read_pictures(arguments.pictures, SIDE)
    plain = PlainLoop(arguments.pictures)
    trainer = Trainer(pictures.labelled(), len(pictures.names), compiled=arguments.compile)
    for loop in (plain, trainer):
        loop.run(3)  # kernels are made
    ratios = []
    for turn in range(arguments.turns):
        slow, fast = seconds(plain, arguments.steps), seconds(trainer, arguments.steps)
        ratios.append(slow / fast)
        print(f"turn {turn}: plain {BATCH / slow:.1f}, trainer {BATCH / fast:.1f} pictures/s, ratio {slow / fast:.2f}")
    print(f"ratio, median of {arguments.turns}: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
