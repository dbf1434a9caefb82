"""What the runs on a user's pictures share."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch

from models.pack import InvalidPack
from models.training.data import Augmentation, LabelledImages
from models.training.loop import Task

MEASURED = 1024  # held-out pictures, at most


class Augmented(Protocol):
    """Options that change pictures at random."""

    @property
    def flip(self) -> bool: ...

    @property
    def shift(self) -> bool: ...

    @property
    def colour(self) -> float: ...


def augmentation_of(options: Augmented) -> Augmentation:
    """What the options ask for."""
    return Augmentation(shift=0.5 * options.shift, flip=0.5 * options.flip, colour=options.colour)


def check_augmentation(options: Augmented, *, is_latent: bool) -> None:
    """Check that the options fit what the network sees.

    Raises:
        InvalidPack: pixels are to be changed, and it sees latents.
    """
    if is_latent and (options.shift or options.colour):
        option = "--shift" if options.shift else "--colour"
        raise InvalidPack(f"{option} changes pixels, and this pack's latents are encoded once: leave it out")


def checkpoint_activations(network: Any) -> None:
    """Let a network compute its activations again for the gradient, instead of keeping them.

    Raises:
        InvalidPack: it can't.
    """
    if not network._supports_gradient_checkpointing:
        raise InvalidPack(f"--gradient-checkpointing: {type(network).__name__} does not have it; use --accumulate")
    network.enable_gradient_checkpointing()


def said(lines: Iterable[str]) -> None:
    """Print lines to the error stream, where the progress bars are."""
    for line in lines:
        print(line, file=sys.stderr)


class HeldOut:
    """Measures the loss of a task on pictures that it is not trained on, with the same noise every time.

    Attributes:
        last: the latest loss.
    """

    def __init__(self, task: Task, pictures: LabelledImages, batch_size: int) -> None:
        self._task, self._batch_size = task, batch_size
        self._pictures = pictures[:MEASURED]
        self.last = float("nan")

    @torch.no_grad()
    def __call__(self, device: torch.device) -> Mapping[str, float]:
        generator = torch.Generator(device).manual_seed(0)
        total = 0.0
        for start in range(0, len(self._pictures), self._batch_size):
            part = self._pictures[start : start + self._batch_size].to(device)
            total += self._task.loss(part, generator).item() * len(part)
        self.last = total / len(self._pictures)
        return {"held_out_loss": self.last}
