"""Reads a folder's pictures into one array, cached, and reports what is odd about them."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from models.training.data import LabelledImages
from models.training.own.folders import Found, InvalidPictures, Listing, pictures_in

Fit = Literal["crop", "pad"]
FEW = 20  # pictures; a class with fewer is reported
SHOWN = 10  # names in a line
_FORMAT = 1  # version of the cached files
_HELD_OUT = 10  # one picture in so many
_FEWEST = 4  # held-out pictures: each of two halves has a covariance


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures of a folder, all of one size.

    Attributes:
        images: `uint8` (N,C,H,W); C is 1 if all are grey.
        labels: `int64` (N,), indices of `names`; all 0 if there are no classes.
        names: the classes.
        captions: of each picture; `None` if it has none.
        digests: of each picture's pixels.
        unreadable: files that could not be read, with the reason.
        sizes: number of pictures by their size on disk, (height, width).
        passed_over: number of files that are no pictures.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    captions: tuple[str | None, ...]
    digests: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]
    sizes: tuple[tuple[int, int, int], ...]
    passed_over: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """Of all pictures, classes and captions."""
        content = json.dumps([self.digests, self.labels.tolist(), self.names, self.captions])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def only(self, rows: Tensor) -> Self:
        chosen = rows.tolist()
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            captions=tuple(self.captions[row] for row in chosen),
            digests=tuple(self.digests[row] for row in chosen),
        )

    def labelled(self) -> LabelledImages:
        return LabelledImages(self.images, self.labels)

    def split_rows(self) -> tuple[Tensor, Tensor]:
        """Rows of the pictures to train on, and of those held out: one in ten of each class.

        Which are held out depends on their pixels only, so that training, classifier and evaluation agree. A picture
        that is there several times is on one side only. Classes of fewer than five pictures hold none out; if fewer
        than four are held out, the pictures to train on are measured instead.
        """
        out = torch.zeros(len(self), dtype=torch.bool)
        for label in range(len(self.names) or 1):
            rows = (self.labels == label).nonzero().flatten().tolist()
            distinct = sorted({self.digests[row] for row in rows})
            if len(distinct) >= _HELD_OUT // 2:
                chosen = set(distinct[: max(1, len(distinct) // _HELD_OUT)])
                for row in rows:
                    out[row] = self.digests[row] in chosen
        trained = (~out).nonzero().flatten()
        return trained, out.nonzero().flatten() if out.sum() >= _FEWEST else trained

    def split(self) -> tuple[Self, Self]:
        """The pictures of `split_rows`."""
        trained, held_out = self.split_rows()
        return self.only(trained), self.only(held_out)

    def report(self) -> Iterator[str]:
        """Lines that say what there is, and what is odd about it."""
        yield f"{len(self)} pictures" + (f" of {len(self.names)} classes:" if self.names else "")
        counts = Counter(self.labels.tolist())
        for index, name in enumerate(self.names):
            few = "  <- few: it will be drawn badly" if counts[index] < FEW else ""
            yield f"  {counts[index]:>7}  {name}{few}"
        if self.unreadable:
            yield f"{len(self.unreadable)} files can't be read and are left out:"
            yield from (f"  {path}: {reason}" for path, reason in self.unreadable[:SHOWN])
            if len(self.unreadable) > SHOWN:
                yield f"  and {len(self.unreadable) - SHOWN} more"
        if self.passed_over:
            yield f"{self.passed_over} other files are no pictures and were passed over"
        if len(self.sizes) > 1:
            most = max(self.sizes, key=lambda size: size[2])
            yield (
                f"their sizes differ: {len(self.sizes)} sizes, most of them {most[1]}x{most[0]}; all are scaled to "
                f"{self.images.shape[3]}x{self.images.shape[2]}"
            )
        yield from self._duplicates()
        with_text = sum(caption is not None for caption in self.captions)
        if with_text:
            yield f"{with_text} of {len(self)} have captions"

    def _duplicates(self) -> Iterator[str]:
        classes: dict[str, set[int]] = {}
        for digest, label in zip(self.digests, self.labels.tolist(), strict=True):
            classes.setdefault(digest, set()).add(label)
        if again := len(self) - len(classes):
            yield f"{again} pictures are there more than once"
        if both := [sorted(labels) for labels in classes.values() if len(labels) > 1]:
            first = " and ".join(self.names[label] for label in both[0])
            yield f"{len(both)} pictures are in several classes, such as {first}: no classifier can tell those"


def read_pictures(folder: Path, side: int, *, fit: Fit = "crop", cache: Path | None = None) -> Pictures:
    """Read a folder's pictures as squares of `side` pixels, from `cache` if they were read before.

    Args:
        folder: as for `pictures_in`.
        side: to which they are scaled.
        fit: what becomes of pictures that are not square: their middle is cut out, or they are put on white.
        cache: folder for the array; nothing is kept without it.

    Raises:
        InvalidPictures: as for `pictures_in`; or none of the files can be read.
    """
    listing = pictures_in(folder)
    path = None if cache is None else cache / f"pictures-{_key(folder, listing, side, fit)}.npz"
    if path is not None and path.exists():
        return _loaded(path)
    pictures = _read(folder, listing, side, fit)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(pictures, path)
    return pictures


def _key(folder: Path, listing: Listing, side: int, fit: Fit) -> str:
    """Digest of everything that the array depends on; files go by their size and time."""
    files = [
        (str(one.path.relative_to(folder)), one.label, one.caption, status.st_size, status.st_mtime_ns)
        for one in listing.pictures
        for status in [one.path.stat()]
    ]
    content = json.dumps([_FORMAT, str(folder.resolve()), side, fit, listing.passed_over, files])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _read(folder: Path, listing: Listing, side: int, fit: Fit) -> Pictures:
    def read(one: Found) -> tuple[NDArray[np.uint8] | str, tuple[int, int]]:
        try:
            return _squared(one.path, side, fit)
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return " ".join(str(error).replace(str(one.path), "it").split())[:120], (0, 0)

    bar = tqdm(total=len(listing.pictures), desc="reading", unit="pictures", delay=1, disable=None)
    kept: list[Found] = []
    arrays: list[NDArray[np.uint8]] = []
    unreadable: list[tuple[str, str]] = []
    sizes: Counter[tuple[int, int]] = Counter()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, bar:  # Pillow decodes without the lock
        for one, (result, size) in zip(listing.pictures, pool.map(read, listing.pictures), strict=True):
            bar.update()
            if isinstance(result, str):
                unreadable.append((str(one.path.relative_to(folder)), result))
            else:
                kept.append(one)
                arrays.append(result)
                sizes[size] += 1
    if not kept:
        raise InvalidPictures(f"none of the {len(listing.pictures)} pictures of {folder} can be read: {unreadable[0]}")
    stacked = np.stack(arrays)  # (N,H,W,3)
    if (stacked[..., :1] == stacked[..., 1:]).all():
        stacked = stacked[..., :1]
    names = _classes(kept, folder)
    return Pictures(
        images=torch.from_numpy(np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))),
        labels=torch.tensor([names.index(one.label) if one.label else 0 for one in kept]),
        names=names,
        captions=tuple(one.caption for one in kept),
        digests=tuple(hashlib.sha256(array.tobytes()).hexdigest()[:16] for array in stacked),
        unreadable=tuple(unreadable),
        sizes=tuple((*size, count) for size, count in sorted(sizes.items())),
        passed_over=listing.passed_over,
    )


def _classes(kept: Sequence[Found], folder: Path) -> tuple[str, ...]:
    names = sorted({one.label for one in kept if one.label})
    without = [one for one in kept if not one.label]
    if names and without:
        raise InvalidPictures(
            f"{without[0].path.relative_to(folder)} and {len(without) - 1} others have no class, and the rest have: "
            "move them into a class's folder"
        )
    return tuple(names)


def _squared(path: Path, side: int, fit: Fit) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """A picture (side,side,3) on white, turned upright, and its size on disk (height, width)."""
    with Image.open(path) as opened:
        opened.draft("RGB", (side, side))
        upright = ImageOps.exif_transpose(opened)
        size = (opened.height, opened.width)
        if "A" in upright.getbands() or "transparency" in upright.info:
            layered = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
        coloured = upright.convert("RGB")
    if fit == "pad":
        squared = ImageOps.pad(coloured, (side, side), Image.Resampling.LANCZOS, color="white")
    else:
        squared = ImageOps.fit(coloured, (side, side), Image.Resampling.LANCZOS)
    return np.asarray(squared), size


def _save(pictures: Pictures, path: Path) -> None:
    """Write the array file, complete or not at all."""
    about = {
        "names": pictures.names,
        "captions": pictures.captions,
        "digests": pictures.digests,
        "unreadable": pictures.unreadable,
        "sizes": pictures.sizes,
        "passed_over": pictures.passed_over,
    }
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, images=pictures.images.numpy(), labels=pictures.labels.numpy(), about=json.dumps(about))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _loaded(path: Path) -> Pictures:
    with np.load(path, allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        return Pictures(
            images=torch.from_numpy(file["images"]),
            labels=torch.from_numpy(file["labels"]),
            names=tuple(about["names"]),
            captions=tuple(about["captions"]),
            digests=tuple(about["digests"]),
            unreadable=tuple((path, reason) for path, reason in about["unreadable"]),
            sizes=tuple((height, width, count) for height, width, count in about["sizes"]),
            passed_over=about["passed_over"],
        )
