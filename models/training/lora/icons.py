"""`python -m models.training.lora.icons PACKAGE FOLDER`: an icon set of the npm registry as a folder to train on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from models.training.data import MissingData
from models.training.emoji import drawn_set, fetch_packages, read_concepts
from models.training.lora.pictures import METADATA

CACHE = Path("data/emoji")
command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@command.command()
def _main(
    package: Annotated[str, typer.Argument(help="an Iconify set of emoji, with its version")],
    folder: Annotated[Path, typer.Argument(help="folder to write the pictures and their captions to")],
    cache: Annotated[Path, typer.Option(help="folder for downloads")] = CACHE,
) -> None:
    """Draw the emoji pack's concepts in the style of another set, each with its Unicode name as the caption."""
    try:
        fetch_packages(cache, also=(package,))
        concepts = read_concepts(cache)
        pictures = drawn_set(package, [concept.emoji for concept in concepts], cache)
    except MissingData as error:
        sys.exit(f"icons: {error}")
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for concept in concepts:
        if (picture := pictures.get(concept.emoji)) is not None:
            name = f"{concept.name.replace(' ', '-')}.png"
            Image.fromarray(picture.transpose(1, 2, 0)).save(folder / name)
            lines.append(json.dumps({"file_name": name, "text": concept.name}))
    (folder / METADATA).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    command()
