"""What is drawn from a picture before a ControlNet sees it: filters without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.feature import canny
from skimage.morphology import thin

Picture = NDArray[np.uint8]
"""(H,W,3)."""

LOW, HIGH = 80, 160  # of Euclidean gradients; the edges of OpenCV's 100 and 200, which sum their parts
TILE_REDUCTION = 8  # as much as ControlNet's tile models were trained to add


def _edges(picture: Picture) -> Picture:
    """White edges on black (Canny 1986), of one pixel."""
    grey = np.asarray(Image.fromarray(picture).convert("L"))
    edges = thin(canny(grey, sigma=0, low_threshold=LOW, high_threshold=HIGH))  # a sharp step gives two rows of pixels
    return _of_one_channel(np.where(edges, 255, 0).astype(np.uint8))


def _coarse(picture: Picture) -> Picture:
    """The picture without its details, reduced and enlarged again."""
    image = Image.fromarray(picture)
    small = (max(1, image.width // TILE_REDUCTION), max(1, image.height // TILE_REDUCTION))
    return np.asarray(image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC))


def _grey(picture: Picture) -> Picture:
    return _of_one_channel(np.asarray(Image.fromarray(picture).convert("L")))


def _inverted(picture: Picture) -> Picture:
    return 255 - picture


def _of_one_channel(grey: NDArray[np.uint8]) -> Picture:
    return np.repeat(grey[..., None], 3, axis=-1)


PREPROCESSORS: Mapping[str, Callable[[Picture], Picture]] = {
    "canny": _edges,
    "tile": _coarse,
    "gray": _grey,
    "invert": _inverted,
}
"""By name: from a picture to one of the same size."""


def preprocessed(picture: Picture, name: str | None) -> Picture:
    """A picture (H,W,3) as a ControlNet is to see it; `None` leaves it as it is."""
    return picture if name is None else PREPROCESSORS[name](picture)
