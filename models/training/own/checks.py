"""What pictures must have to be trained on."""

from __future__ import annotations

import torch

from models.training.own.folders import InvalidPictures
from models.training.own.pictures import Pictures


def check_captions(pictures: Pictures) -> None:
    """Check that every picture has a caption, or a class whose name is one.

    Raises:
        InvalidPictures: some have neither.
    """
    without = sum(caption is None for caption in pictures.captions)
    if without and not pictures.names:
        raise InvalidPictures(
            f"captions are needed, and {without} of {len(pictures)} pictures have none: put NAME.txt beside NAME.png, "
            'or a metadata.jsonl with "file_name" and "text"'
        )


def check_classes(pictures: Pictures) -> None:
    """Check that there are classes to tell apart.

    Raises:
        InvalidPictures: fewer than two, or one of a single picture.
    """
    if len(pictures.names) < 2:
        there = f"the only class is '{pictures.names[0]}'" if pictures.names else "the pictures have no classes"
        raise InvalidPictures(
            f"{there}: guidance needs at least two. Put the pictures of each class in a folder of their own, or train "
            "a pack on captions with --text"
        )
    counts = torch.bincount(pictures.labels, minlength=len(pictures.names)).tolist()
    if single := [name for name, count in zip(pictures.names, counts, strict=True) if count < 2]:
        raise InvalidPictures(
            f"class '{single[0]}' has one picture that can be read: add more, or take its folder away"
        )
