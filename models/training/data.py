"""Training pictures: reads them from disk and batches them in a reproducible order."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_LABELS = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


class MissingData(FileNotFoundError):
    """The data set is missing; the message says how to get it."""


@dataclass(frozen=True)
class LabelledImages:
    """Pictures with their classes.

    Attributes:
        images: `uint8`, shape (N, C, H, W).
        labels: `int64`, shape (N,), each in 0..num_classes-1.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Self:
        return replace(self, images=self.images[index], labels=self.labels[index])

    def to(self, device: torch.device) -> Self:
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def batches(self, batch_size: int, *, seed: int, first_step: int = 0) -> Iterator[Self]:
        """Endless shuffled batches; starting at `first_step` continues an earlier run's order.

        Fewer pictures than a batch has are repeated in it.
        """
        repeats = -(-batch_size // len(self))
        steps_per_epoch = repeats * len(self) // batch_size
        step = first_step
        while True:
            epoch, within = divmod(step, steps_per_epoch)
            shuffler = torch.Generator().manual_seed(seed + epoch)
            order = torch.cat([torch.randperm(len(self), generator=shuffler) for _ in range(repeats)])
            for start in range(within * batch_size, steps_per_epoch * batch_size, batch_size):
                yield self[order[start : start + batch_size]]
                step += 1


def save_whole(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file atomically: it is complete or absent, even if the process is killed."""
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    os.replace(partial, path)


def to_unit_range(images: Tensor) -> Tensor:
    """`uint8` pictures to float in [-1, 1]."""
    return images.float() / 127.5 - 1


def mirrored(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Flip a random `share` of the pictures (N,C,H,W) horizontally."""
    chosen = torch.rand(len(images), generator=generator, device=generator.device) < share
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def shifted(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Shift a random `share` of the `uint8` pictures (N,C,H,W) by up to one pixel each way; the margin wraps around."""
    moved = images.clone()
    chosen = torch.rand(len(images), generator=generator, device=generator.device) < share
    directions = torch.randint(-1, 2, (len(images), 2), generator=generator, device=generator.device)
    for row in chosen.nonzero().flatten().tolist():
        moved[row] = images[row].roll(directions[row].tolist(), dims=(1, 2))
    return moved


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of training pictures that keep their class.

    Attributes:
        shift, flip: shares of the pictures that are moved by a pixel, or mirrored.
        colour: greatest relative change of brightness and saturation, 0..1.
    """

    shift: float = 0.0
    flip: float = 0.0
    colour: float = 0.0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change `uint8` pictures (N,C,H,W)."""
        if self.shift:
            images = shifted(images, self.shift, generator)
        if self.flip:
            images = mirrored(images, self.flip, generator)
        if self.colour:
            images = recoloured(images, self.colour, generator)
        return images


AS_THEY_ARE = Augmentation()


def recoloured(images: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Multiply brightness and saturation of each `uint8` picture (N,C,H,W) by a factor in 1-`most`..1+`most`."""

    def factor() -> Tensor:
        uniform = torch.rand((len(images), 1, 1, 1), generator=generator, device=generator.device)
        return 1 + most * (2 * uniform - 1)

    bright = images.float() * factor()
    grey = bright.mean(1, keepdim=True)
    return torch.lerp(grey, bright, factor()).round().clamp(0, 255).to(torch.uint8)


def read_idx(path: Path) -> np.ndarray:
    """Read one gzipped IDX file of unsigned bytes (the MNIST format: magic, sizes big-endian, data)."""
    raw = gzip.decompress(path.read_bytes())
    element_type, dimensions = raw[2], raw[3]
    if element_type != 0x08:
        raise ValueError(f"{path}: IDX element type 0x{element_type:02x}, expected 0x08 (unsigned byte)")
    shape = np.frombuffer(raw, dtype=">i4", count=dimensions, offset=4)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(tuple(shape))


def load_fashion_mnist(split: str = "train", folder: Path = FASHION_MNIST_FOLDER) -> LabelledImages:
    """Fashion-MNIST (Xiao et al. 2017): `split` "train" has 60,000 pictures of 28×28 grey, "t10k" 10,000.

    Raises:
        MissingData: the four IDX files are not in `folder`.
    """
    images, labels = folder / f"{split}-images-idx3-ubyte.gz", folder / f"{split}-labels-idx1-ubyte.gz"
    if not (images.exists() and labels.exists()):
        raise MissingData(
            f"No Fashion-MNIST in {folder}. Install Debian's package (apt-get install dataset-fashion-mnist) "
            "or pass --data FOLDER with its four idx .gz files."
        )
    return LabelledImages(
        torch.from_numpy(read_idx(images).copy()).unsqueeze(1), torch.from_numpy(read_idx(labels).astype(np.int64))
    )
