"""`python -m models.training PACK`: train a bundled pack from its data, or go on where an earlier run stopped."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from PIL import Image

from models.classifiers import load_judge
from models.engine import Engine
from models.loading import open_pack
from models.spec import Guidance, SampleSpec
from models.training.data import MissingData
from models.training.judge import save_reference
from models.training.loop import train
from models.training.recipes import RECIPES, Recipe


def save_sample_grid(folder: Path, recipe: Recipe, path: Path) -> None:
    """Draw every class without and with classifier-free guidance from the pack as it is now."""
    guidances = (Guidance(), Guidance(free_scale=3.0))
    with Engine([str(folder)]) as engine:
        name = next(iter(engine.packs))
        height, width = engine.picture_size(name)
        pictures = engine.generate(
            [
                SampleSpec(pack=name, label=label, guidance=guidance, steps=25, seed=0)
                for guidance in guidances
                for label in range(len(recipe.labels))
            ]
        )
    grid = Image.new("L", (width * len(recipe.labels), height * len(guidances)))
    for index, picture in enumerate(pictures):
        row, column = divmod(index, len(recipe.labels))
        grid.paste(Image.fromarray(picture[..., 0]), (column * width, row * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)


def main() -> None:
    """Train the pack's denoiser and its noise-aware classifier into a folder that can be served at any time."""
    parser = argparse.ArgumentParser(prog="cynosure train", description=main.__doc__)
    parser.add_argument("pack", choices=sorted(RECIPES))
    parser.add_argument("-o", "--out", type=Path, help="pack folder; out/train/PACK by default")
    parser.add_argument("--data", type=Path, help="folder of the training pictures")
    parser.add_argument("--only", choices=("diffusion", "classifier", "judge"), help="train one network alone")
    parser.add_argument("--steps", type=int, help="optimiser steps instead of the recipe's, for a quick try")
    parser.add_argument("--compile", action="store_true", help="torch.compile the denoiser: slow to start, then faster")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.pack]
    folder: Path = arguments.out or Path("out/train") / arguments.pack
    data_folder = arguments.data or recipe.data_folder
    try:
        data = recipe.load(data_folder)
    except MissingData as error:
        sys.exit(f"cynosure train: {error}")
    folder.mkdir(parents=True, exist_ok=True)

    def index(*, with_classifier: bool) -> None:
        text = json.dumps(recipe.model_index(with_classifier=with_classifier), indent=2)
        (folder / "model_index.json").write_text(text + "\n")

    def draw(step: int) -> None:
        index(with_classifier=(folder / "classifier").is_dir())
        save_sample_grid(folder, recipe, folder / "training" / "samples" / f"{step:06d}.png")

    override = {} if arguments.steps is None else {"steps": arguments.steps}
    if arguments.only in (None, "diffusion"):
        config = dataclasses.replace(recipe.diffusion, **override)
        train(
            recipe.diffusion_task(),
            data,
            config,
            folder,
            name="diffusion",
            compile_network=arguments.compile,
            on_checkpoint=draw,
        )
    if arguments.only in (None, "classifier"):
        config = dataclasses.replace(recipe.classifying, **override)
        train(recipe.classifier_task(), data, config, folder, name="classifier")
        index(with_classifier=True)
    if arguments.only in (None, "judge"):
        config = dataclasses.replace(recipe.judging, **override)
        task = recipe.judge_task()
        train(task, data, config, folder, name="judge")
        save_reference(load_judge(open_pack(str(folder))), recipe.load_test(data_folder), folder)


if __name__ == "__main__":
    main()
