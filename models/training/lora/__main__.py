"""`python -m models.training.lora`: train a LoRA on a folder of pictures, or resume an interrupted run."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import sys
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import typer
from PIL import Image

from models import command_line
from models.calibration.result import fixed_calibration
from models.engine import Engine
from models.pack import InvalidPack, Pack, open_pack
from models.samplers import FLOW_PREDICTION
from models.spec import Guidance, Lora, SampleSpec
from models.training.data import MissingData
from models.training.loop import LoopConfig, train
from models.training.lora.pictures import CaptionedImages
from models.training.lora.task import LoraTask

SAMPLES = 4
"""Captions that are drawn at each checkpoint: without the LoRA in the upper row, with it in the lower."""


def save_sample_grid(pack: Pack, file: Path, captions: list[str], step: int, path: Path) -> None:
    """Draw captions without and with the LoRA of so many optimiser steps, in no more steps, from the same noise."""
    with Engine([pack], precision="float32", calibrate=fixed_calibration, loras=file.parent) as engine:
        denoiser = engine.packs[pack.name].denoiser
        scale, steps = float(pack.defaults.get("guidance_scale", 5.0)), int(pack.defaults.get("steps", 30))
        steps = min(steps, step)
        specs = [
            SampleSpec(
                pack=pack.name,
                prompt=caption,
                steps=steps,
                sampler="flow_euler" if denoiser.prediction_type == FLOW_PREDICTION else "ddim",
                guidance=Guidance(free_scale=scale),
                clip=not denoiser.has_autoencoder,
                loras=loras,
            )
            for loras in ((), (Lora(file.stem),))
            for caption in captions
        ]
        pictures = engine.generate(specs)
    height, width = pictures[0].shape[:2]
    grid = Image.new("RGB", (width * len(captions), 2 * height))
    for (row, column), picture in zip(itertools.product(range(2), range(len(captions))), pictures, strict=True):
        grid.paste(Image.fromarray(picture.squeeze()), (column * width, row * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)


def run(arguments: SimpleNamespace) -> None:
    """Train, with a folder beside the file for what is written meanwhile.

    Raises:
        InvalidPack: the pack can't be opened, or takes no LoRAs.
        MissingData: the pictures, their captions or peft are missing.
    """
    if importlib.util.find_spec("peft") is None:
        raise MissingData("it needs peft, which is not installed: pip install 'cynosure[train]'")
    out: Path = arguments.out
    if out.suffix != ".safetensors":
        raise MissingData(f"{out} must end in .safetensors")
    pack, folder = open_pack(arguments.pack), out.with_suffix("")
    torch.manual_seed(arguments.seed)  # of the products' first weights, which peft draws
    about = {"modelspec.title": out.stem, "modelspec.trigger_phrase": arguments.trigger or ""}
    probe = CaptionedImages.read(arguments.data, (1, 1), channels=3, caption=arguments.caption)
    task = LoraTask(
        pack,
        probe.captions,
        rank=arguments.rank,
        layers=arguments.layers,
        caption_dropout=0.1,
        about={key: value for key, value in about.items() if value},
    )
    data = CaptionedImages.read(arguments.data, task.denoiser.picture_size, channels=3, caption=arguments.caption)
    config = LoopConfig(
        steps=arguments.steps,
        batch_size=min(arguments.batch, len(data)),
        learning_rate=arguments.rate,
        warmup_steps=10,
        decay_fraction=0.5,
        weight_decay=0.0,
        ema_decay=0.9,
        seed=arguments.seed,
        log_every=10,
        checkpoint_every=arguments.every,
    )
    captions = list(dict.fromkeys(data.captions))
    shown = captions[:: max(1, len(captions) // SAMPLES)][:SAMPLES]

    def draw(step: int) -> None:
        save_sample_grid(pack, out, shown, step, folder / "training" / "samples" / f"{step:06d}.png")

    out.parent.mkdir(parents=True, exist_ok=True)
    train(task, data, config, folder, name="lora", on_checkpoint=draw)


command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@command.command()
@wraps(command_line.train_lora)
def _main(**given: Any) -> None:
    try:
        run(SimpleNamespace(**given))
    except (MissingData, InvalidPack) as error:
        sys.exit(f"cynosure train lora: {error}")


if __name__ == "__main__":
    gc.freeze()  # libraries stay to the end, and searching them for garbage takes seconds
    command(prog_name="cynosure train lora")
