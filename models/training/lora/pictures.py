"""A folder of pictures with captions, to train a LoRA on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from models.training.data import LabelledImages, MissingData

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class CaptionedImages(LabelledImages):
    """Pictures of one size with captions, whose numbers are their labels.

    Attributes:
        captions: by number.
    """

    captions: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path, size: tuple[int, int], *, channels: int, caption: str | None = None) -> Self:
        """Read every picture in a folder, on white, cut and scaled to `size` (height, width).

        A picture's caption is the text in `NAME.txt` beside `NAME.png`, or `text` in the line of `metadata.jsonl` that
        has its `file_name`, or else `caption`.

        Raises:
            MissingData: there is no picture, or one of them can't be read or has no caption.
        """
        if not folder.is_dir():
            raise MissingData(f"{folder} is no folder")
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise MissingData(f"{folder} holds no picture ({', '.join(SUFFIXES)})")
        told = _metadata(folder)
        texts = [_caption(path, told) or caption for path in paths]
        bare = [path.name for path, text in zip(paths, texts, strict=True) if not text]
        if bare:
            raise MissingData(
                f"{len(bare)} pictures in {folder} have no caption ({bare[0]}): write it into "
                f"{Path(bare[0]).stem}.txt or {METADATA}, or give one for all with --caption"
            )
        images = torch.stack([_picture(path, size, channels) for path in paths])
        return cls(images, torch.arange(len(paths)), tuple(str(text) for text in texts))


def _caption(path: Path, told: Mapping[str, str]) -> str | None:
    beside = path.with_suffix(".txt")
    return (beside.read_text().strip() if beside.is_file() else None) or told.get(path.name)


def _metadata(folder: Path) -> dict[str, str]:
    path = folder / METADATA
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()] if path.is_file() else []
        return {str(line["file_name"]): str(line["text"]).strip() for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise MissingData(f"{path}: each line must be a JSON object with file_name and text ({error})") from error


def _picture(path: Path, size: tuple[int, int], channels: int) -> Tensor:
    try:
        with Image.open(path) as opened:
            coloured = opened.convert("RGBA")
            white = Image.new("RGBA", coloured.size, "white")
            flat = Image.alpha_composite(white, coloured).convert("RGB" if channels == 3 else "L")
    except (OSError, UnidentifiedImageError) as error:
        raise MissingData(f"{path} can't be read as a picture: {error}") from error
    cropped = np.array(ImageOps.fit(flat, size[::-1], Image.Resampling.LANCZOS))
    return torch.from_numpy(cropped).reshape(*size, channels).permute(2, 0, 1)
