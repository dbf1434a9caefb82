"""`python -m benchmarks.png`: time and size of PNG encoders on this service's kinds of pictures."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.engine import Engine
from models.spec import Guidance, SampleSpec

Picture = NDArray[np.uint8]
SECONDS_EACH = 0.4


def _pillow(level: int) -> Callable[[Picture], bytes]:
    def encode(picture: Picture) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG", compress_level=level)
        return buffer.getvalue()

    return encode


ENCODERS: dict[str, Callable[[Picture], bytes]] = {
    **{f"Pillow level {level}": _pillow(level) for level in (1, 3, 6, 9)},
    **{f"libspng level {level}": lambda p, level=level: imagecodecs.spng_encode(p, level=level) for level in (1, 6)},
    **{f"libpng level {level}": lambda p, level=level: imagecodecs.png_encode(p, level=level) for level in (1, 6)},
}


def pictures() -> dict[str, Picture]:
    """A bundled pack's picture, and larger colour pictures built from 64 of them, as smooth as natural ones."""
    with Engine(["fashion"]) as engine:
        drawn = engine.generate(
            [
                SampleSpec(pack="fashion", label=i % 10, seed=i, steps=20, guidance=Guidance(free_scale=2.0))
                for i in range(64)
            ]
        )
    mosaic = Image.fromarray(np.block([[drawn[8 * row + column][..., 0] for column in range(8)] for row in range(8)]))

    def coloured(side: int) -> Picture:
        grey = np.asarray(mosaic.resize((side, side), Image.Resampling.LANCZOS), dtype=np.float32)
        noise = np.random.default_rng(0).normal(0, 2, (side, side, 3))
        return np.clip(grey[..., None] * [1.0, 0.8, 0.6] + noise, 0, 255).astype(np.uint8)

    return {"28x28 grey": drawn[0][..., 0], "256x256 colour": coloured(256), "512x512 colour": coloured(512)}


def main() -> None:
    print(f"{'picture':<16} {'encoder':<16} {'ms':>8} {'bytes':>9}")
    for name, picture in pictures().items():
        for encoder, encode in ENCODERS.items():
            size, calls, started = len(encode(picture)), 0, time.perf_counter()
            while time.perf_counter() - started < SECONDS_EACH:
                encode(picture)
                calls += 1
            print(f"{name:<16} {encoder:<16} {(time.perf_counter() - started) / calls * 1000:>8.3f} {size:>9}")


if __name__ == "__main__":
    main()
