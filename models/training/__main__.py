"""`python -m models.training PACK`: train a pack from its data, or resume an interrupted run."""

from __future__ import annotations

import dataclasses
import json
import sys
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import typer
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from models import command_line
from models.calibration.result import fixed_calibration
from models.engine import Engine
from models.pack import InvalidPack, open_pack
from models.training.data import MissingData
from models.training.loop import train
from models.training.recipe import PixelRecipe
from models.training.recipes import RECIPES


def save_sample_grid(folder: Path, recipe: PixelRecipe, path: Path) -> None:
    """Draw the recipe's sample rows with the pack's current weights, and save them as a grid."""
    pack = str(folder.resolve())  # by path, because a bundled pack may have the folder's name
    # The weights change at every checkpoint, so measuring would never pay off.
    with Engine([pack], precision="float32", calibrate=fixed_calibration) as engine:
        [(name, loaded)] = engine.packs.items()
        height, width = loaded.denoiser.picture_size
        rows = recipe.sample_rows(name)
        pictures = iter(engine.generate([spec for row in rows for spec in row]))
    grid = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)))
    for top, row in enumerate(rows):
        for left, _ in enumerate(row):
            picture = next(pictures).squeeze()
            grid.paste(Image.fromarray(picture), (left * width, top * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)


def start_from(network: nn.Module, weights: Path) -> None:
    """Initialize `network` with a pack's weights; a checkpoint, if there is one, replaces them."""
    network.load_state_dict(load_file(weights / "diffusion_pytorch_model.safetensors"))


def run(recipe: PixelRecipe, arguments: SimpleNamespace) -> None:
    """Train the networks that `arguments` select.

    Raises:
        MissingData: the training pictures are missing; the message says how to get them.
    """
    folder: Path = arguments.out or Path("out/train") / arguments.pack
    data_folder: Path = getattr(arguments, recipe.pictures_from) or recipe.data_folder
    override = {} if arguments.steps is None else {"steps": arguments.steps}

    def index(*, with_classifier: bool) -> None:
        text = json.dumps(recipe.model_index(with_classifier=with_classifier), indent=2)
        (folder / "model_index.json").write_text(text + "\n")

    def draw(step: int) -> None:
        index(with_classifier=(folder / "classifier").is_dir())
        save_sample_grid(folder, recipe, folder / "training" / "samples" / f"{step:06d}.png")

    if arguments.only in (None, "diffusion"):
        start = open_pack(arguments.init_from).component("unet") if arguments.init_from else None
        config = dataclasses.replace(recipe.diffusion, **override)
        data = recipe.pictures(data_folder)  # takes minutes
        task = recipe.diffusion_task(data)
        if start is not None:
            start_from(task.network, start)
        train(
            task,
            data,
            config,
            folder,
            name="diffusion",
            compile_network=arguments.compile,
            on_checkpoint=draw,
        )
    if arguments.only in (None, "classifier"):
        config = dataclasses.replace(recipe.classifying, **override)
        data = recipe.classifier_pictures(data_folder)
        train(recipe.classifier_task(data, folder), data, config, folder, name="classifier")
        index(with_classifier=True)
    if arguments.only in (None, "judge"):
        config = dataclasses.replace(recipe.judging, **override)
        train(recipe.judge_task(), recipe.judge_pictures(data_folder), config, folder, name="judge")
        recipe.save_reference(data_folder, folder)


command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@command.command()
@wraps(command_line.train)
def _main(**given: Any) -> None:
    arguments = SimpleNamespace(**given)
    recipe = RECIPES[arguments.pack]
    if arguments.data and recipe.pictures_from == "cache":
        raise typer.BadParameter(
            f"'{arguments.pack}' downloads its pictures and takes none of yours; --cache FOLDER is where it keeps them",
            param_hint="--data",
        )
    if arguments.cache and recipe.pictures_from == "data":
        raise typer.BadParameter(f"'{arguments.pack}' downloads nothing; give --data FOLDER", param_hint="--cache")
    if arguments.init_from and arguments.only not in (None, "diffusion"):
        raise typer.BadParameter(
            f"it is for the denoiser, and --only {arguments.only} does not train it", param_hint="--init-from"
        )
    try:
        run(recipe, arguments)
    except (MissingData, InvalidPack) as error:
        sys.exit(f"cynosure train: {error}")


if __name__ == "__main__":
    command(prog_name="cynosure train")
