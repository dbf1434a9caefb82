"""Reviewing pictures before they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cynosure.contract import Flag, Review
from jobs import traces
from models.engine import Image
from models.reviewing.reviewer import Reviewer

GREY = 128


class PictureRefused(Exception):
    """The review flagged a picture, and flagged pictures are refused."""


@dataclass(frozen=True)
class Reviewed:
    """Pictures as they may be stored.

    Attributes:
        pictures: in order; those that were replaced are grey.
        flagged: why a picture was flagged, by its index; empty if none was.
        replaced: by index, the labels for which a picture is grey; `None` for one that is as it was drawn.
    """

    pictures: Sequence[Image]
    flagged: tuple[tuple[Flag, ...], ...]
    replaced: tuple[tuple[str, ...] | None, ...]


@dataclass(frozen=True)
class Reviews:
    """Looks at the pictures of jobs; `card` says how, to clients."""

    reviewer: Reviewer
    card: Review

    def of(self, pictures: Sequence[Image]) -> Reviewed:
        """Review the pictures of a job.

        Raises:
            PictureRefused: one of them is flagged, and `action` is `refuse`.
        """
        with traces.span("review"):
            found = [self.reviewer.flags(picture) for picture in pictures]
        if self.card.action == "refuse" and any(found):
            index, flags = next((index, flags) for index, flags in enumerate(found) if flags)
            labels = ", ".join(f"{label} ({score:.2f})" for label, score in flags.items())
            raise PictureRefused(f"The review refused picture {index}: {labels}. Try another seed or prompt.")
        flagged = tuple(
            tuple(Flag(label=label, score=round(score, 4)) for label, score in flags.items()) for flags in found
        )
        is_grey = [bool(flags) and self.card.action == "grey" for flags in found]
        return Reviewed(
            [np.full_like(picture, GREY) if grey else picture for picture, grey in zip(pictures, is_grey, strict=True)],
            flagged if any(flagged) else (),
            tuple(tuple(flags) if grey else None for flags, grey in zip(found, is_grey, strict=True)),
        )


def reviewed(pictures: Sequence[Image], reviews: Reviews | None) -> Reviewed:
    """The pictures of a job as they may be stored; without `reviews`, as they were drawn.

    Raises:
        PictureRefused: one of them must not be stored.
    """
    return reviews.of(pictures) if reviews is not None else Reviewed(pictures, (), (None,) * len(pictures))
