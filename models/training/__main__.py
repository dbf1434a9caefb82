"""`python -m models.training COMMAND`: train a pack or a classifier, or resume an interrupted run."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import typer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from models import command_line
from models.pack import InvalidPack, open_pack
from models.samplers import NotLinear
from models.training.checkpoints import NoSpace, OtherRun
from models.training.data import MissingData
from models.training.loop import Interrupted, train
from models.training.own import classifying, finetuning, folder
from models.training.own.folders import InvalidPictures
from models.training.recipe import save_sample_grid
from models.training.recipes import RECIPES

INTERRUPTED = 130  # as shells report a program that SIGINT ended


def start_from(network: nn.Module, weights: Path) -> None:
    """Initialize `network` with a pack's weights; a checkpoint, if there is one, replaces them."""
    network.load_state_dict(load_file(weights / "diffusion_pytorch_model.safetensors"))


def train_bundled(
    name: str,
    *,
    out: Path | None,
    pictures: Path | None,
    only: str | None,
    steps: int | None,
    init_from: str | None,
    compile: bool,
) -> None:
    """Train the networks of a bundled pack, all or `only` one.

    Raises:
        MissingData: the training pictures are missing; the message says how to get them.
    """
    recipe = RECIPES[name]
    folder = out or Path("out/train") / name
    data_folder = pictures or recipe.data_folder
    override = {} if steps is None else {"steps": steps}

    def index(*, with_classifier: bool) -> None:
        text = json.dumps(recipe.model_index(with_classifier=with_classifier), indent=2)
        (folder / "model_index.json").write_text(text + "\n")

    def draw(step: int) -> None:
        index(with_classifier=(folder / "classifier").is_dir())
        save_sample_grid(folder, recipe, step)

    if only in (None, "diffusion"):
        start = open_pack(init_from).component("unet") if init_from else None
        config = dataclasses.replace(recipe.diffusion, **override)
        data = recipe.pictures(data_folder)  # takes minutes
        task = recipe.diffusion_task(data)
        if start is not None:
            start_from(task.network, start)
        train(task, data, config, folder, name="diffusion", compile_network=compile, on_checkpoint=draw)
    if only in (None, "classifier"):
        config = dataclasses.replace(recipe.classifying, **override)
        data = recipe.classifier_pictures(data_folder)
        train(recipe.classifier_task(data, folder), data, config, folder, name="classifier")
        index(with_classifier=True)
    if only in (None, "judge"):
        config = dataclasses.replace(recipe.judging, **override)
        train(recipe.judge_task(), recipe.judge_pictures(data_folder), config, folder, name="judge")
        recipe.save_reference(data_folder, folder)


def _bundled(name: str, given: dict[str, Any]) -> None:
    if given["init_from"] and given["only"] not in (None, "diffusion"):
        raise typer.BadParameter(
            f"it is for the denoiser, and --only {given['only']} does not train it", param_hint="--init-from"
        )
    train_bundled(name, pictures=given.pop(RECIPES[name].pictures_from), **given)


def _command() -> str:
    """How this program was called."""
    return " ".join(["cynosure train", *sys.argv[1:]])


RUNS: Mapping[str, Callable[[dict[str, Any]], None]] = {
    "folder": lambda given: folder.run(folder.FolderRun(**given), _command()),
    "classifier": lambda given: classifying.run(classifying.ClassifierRun(**given), _command()),
    "finetune": lambda given: finetuning.run(finetuning.FinetuneRun(**given), _command()),
    "fashion": lambda given: _bundled("fashion", given),
    "emoji": lambda given: _bundled("emoji", given),
}


def _on_gpus(count: int) -> None:
    """Become as many processes, which share the training."""
    if count > torch.cuda.device_count():
        sys.exit(f"cynosure train: --gpus {count}: this machine has {torch.cuda.device_count()}")
    launch = [sys.executable, "-P", "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count)]
    os.execv(sys.executable, [*launch, "-m", "models.training", *sys.argv[1:]])


def _running(name: str, options: Callable[..., None]) -> Callable[..., None]:
    @wraps(options)
    def run(**given: Any) -> None:
        if given.get("gpus", 1) > 1 and "WORLD_SIZE" not in os.environ:
            _on_gpus(given["gpus"])
        try:
            RUNS[name](given)
        except (MissingData, InvalidPack, InvalidPictures, NotLinear, OtherRun, NoSpace) as error:
            sys.exit(f"cynosure train: {error}")
        except Interrupted as stopped:
            print(f"cynosure train: {stopped}; the same command goes on from there", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except KeyboardInterrupt:
            print("cynosure train: interrupted; the same command starts again", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except OSError as error:  # a disk that is full, or a folder that may not be written
            sys.exit(f"cynosure train: {error.filename or given.get('out')}: {error.strerror or error}")
        except SafetensorError as error:  # the same, in the library's own class
            sys.exit(f"cynosure train: {given.get('out')} can't be written: {error}")

    return run


command = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
for _name, _options in command_line.TRAIN.items():
    command.command(_name)(_running(_name, _options))


if __name__ == "__main__":
    gc.freeze()  # libraries stay to the end, and searching them for garbage takes seconds
    command(prog_name="cynosure train")
