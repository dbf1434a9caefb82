"""Draw a set of pictures to train on: shapes of any colour, size and place, in a folder for each kind.

python docs/examples/shapes.py pictures --count 1000
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

SIDE = 32
FINER = 4  # times, before it is scaled down, for smooth edges
KINDS = ("circle", "cross", "square", "star", "triangle")


def outline(kind: str, radius: float, turn: float) -> list[tuple[float, float]]:
    """The corners of a shape around (0, 0), turned by an angle."""
    if kind == "cross":
        arm, end = radius * 0.3, radius
        corners = [(arm, arm), (arm, end), (-arm, end), (-arm, arm), (-end, arm), (-end, -arm)]
        corners += [(-x, -y) for x, y in corners]
    else:
        count = {"triangle": 3, "square": 4, "star": 10, "circle": 60}[kind]
        radii = [radius * (0.42 if kind == "star" and corner % 2 else 1.0) for corner in range(count)]
        angles = [2 * math.pi * corner / count for corner in range(count)]
        corners = [(r * math.sin(angle), -r * math.cos(angle)) for r, angle in zip(radii, angles, strict=True)]
    return [(x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)) for x, y in corners]


def draw(kind: str, chance: random.Random) -> Image.Image:
    """One shape, dark or light, on a ground that it stands out from."""
    ground = tuple(chance.randint(160, 255) for _ in range(3))
    colour = tuple(chance.randint(0, 130) for _ in range(3))
    if chance.random() < 0.5:
        ground, colour = colour, ground
    side = SIDE * FINER
    picture = Image.new("RGB", (side, side), ground)
    radius = side * chance.uniform(0.24, 0.4)
    x, y = (chance.uniform(radius, side - radius) for _ in range(2))
    corners = outline(kind, radius, chance.uniform(-math.pi, math.pi))
    ImageDraw.Draw(picture).polygon([(x + across, y + down) for across, down in corners], fill=colour)
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="pictures of each kind")
    arguments = parser.parse_args()
    chance = random.Random(0)  # noqa: S311  # the same pictures every time
    for kind in KINDS:
        (arguments.folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(arguments.count):
            draw(kind, chance).save(arguments.folder / kind / f"{number:04d}.png")


if __name__ == "__main__":
    main()
