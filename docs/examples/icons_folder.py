"""Draw icons of OpenMoji (CC BY-SA 4.0), from its npm package, as PNGs of 64x64 in a folder for each category.

NAME.txt beside NAME.png says what it shows.

    npm pack openmoji@17.0.0 && tar xf openmoji-17.0.0.tgz
    python docs/examples/icons_folder.py package icons
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cairosvg

CATEGORIES = ("animals-nature", "flags", "food-drink", "smileys-emotion", "travel-places")
SIDE = 64


def draw(source: Path, target: Path) -> None:
    cairosvg.svg2png(url=str(source), write_to=str(target), output_width=SIDE, output_height=SIDE)


def main(package: Path, folder: Path) -> None:
    entries = json.loads((package / "data/openmoji.json").read_text())
    chosen = [entry for entry in entries if entry["group"] in CATEGORIES and not entry["skintone"]]
    for category in CATEGORIES:
        (folder / category).mkdir(parents=True, exist_ok=True)
    sources = [package / "color/svg" / f"{entry['hexcode']}.svg" for entry in chosen]
    targets = [folder / entry["group"] / f"{entry['hexcode']}.png" for entry in chosen]
    with ProcessPoolExecutor() as pool:
        list(pool.map(draw, sources, targets, chunksize=64))
    for entry, target in zip(chosen, targets, strict=True):
        target.with_suffix(".txt").write_text(entry["annotation"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
