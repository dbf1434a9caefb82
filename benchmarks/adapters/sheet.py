"""`python -m benchmarks.adapters.sheet OUT`: what the bundled LoRA does to what the bundled pack draws."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from models.calibration import fixed_calibration
from models.engine import Engine
from models.pack import PACKS_FOLDER
from models.spec import Guidance, Lora, SampleSpec

PROMPTS = ("cat", "red apple", "sailboat", "umbrella", "guitar", "penguin", "rocket", "cactus")
SCALES = (-1.0, 0.0, 0.5, 1.0)
SIDE, MARGIN, TOP = 80, 50, 18


def main() -> None:
    """Draw a row for each scale and a column for each prompt."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapters.sheet", description=main.__doc__)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    specs = [
        SampleSpec(
            pack="emoji",
            prompt=prompt,
            seed=1,
            steps=25,
            guidance=Guidance(free_scale=2.5),
            loras=(Lora("ink", scale),),
        )
        for scale in SCALES
        for prompt in PROMPTS
    ]
    with Engine(["emoji"], calibrate=fixed_calibration, loras=PACKS_FOLDER.parent / "loras") as engine:
        pictures = iter(engine.generate(specs))
    sheet = Image.new("RGB", (MARGIN + SIDE * len(PROMPTS), TOP + SIDE * len(SCALES)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, scale in enumerate(SCALES):
        pen.text((6, TOP + SIDE * row + SIDE // 2 - 6), f"{scale:g}", fill="black")
        for column, prompt in enumerate(PROMPTS):
            drawn = Image.fromarray(next(pictures)).resize((SIDE - 8, SIDE - 8), Image.Resampling.NEAREST)
            sheet.paste(drawn, (MARGIN + SIDE * column + 4, TOP + SIDE * row + 4))
            pen.text((MARGIN + SIDE * column + 8, 4), prompt, fill="black")
    sheet.save(out, optimize=True)


if __name__ == "__main__":
    main()
