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

    def batches(self, batch_size: int, *, seed: int, first_step: int = 0) -> Iterator[Self]:
        """Endless shuffled batches; starting at `first_step` continues an earlier run's order."""
        steps_per_epoch = len(self) // batch_size
        step = first_step
        while True:
            epoch, within = divmod(step, steps_per_epoch)
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed + epoch))
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
    chosen = torch.rand(len(images), generator=generator) < share
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


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
