"""What a thread's pass through a network does about its deep blocks: run them, keep what they find, or reuse that."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

Kept = tuple[Tensor, ...]
"""What the deep blocks of a network found for one row."""


class _Pass(threading.local):
    """The pass of this thread.

    Attributes:
        kept: where what deep blocks find is put, (B,…) each; `None` if it is not kept.
        reused: what they found at an earlier pass, (B,…) each; `None` if they run.
    """

    kept: list[Tensor] | None = None
    reused: Sequence[Tensor] | None = None


now = _Pass()


@contextmanager
def keeping() -> Iterator[list[Tensor]]:
    """Collect what deep blocks find that are called inside, on this thread: (B,…) each."""
    now.kept = []
    try:
        yield now.kept
    finally:
        now.kept = None


@contextmanager
def reusing(rows: Sequence[Kept], size: int) -> Iterator[None]:
    """Leave out deep blocks that are called inside, on this thread, and take what they found before.

    Args:
        rows: what was kept of each row; if empty, the deep blocks run.
        size: rows of the batch; those beyond `rows`, which pad it, take what the first has.
    """
    padded = [*rows, *[rows[0]] * (size - len(rows))] if rows else []
    now.reused = [_stacked(tensors) for tensors in zip(*padded, strict=True)] or None
    try:
        yield
    finally:
        now.reused = None


@contextmanager
def passing(reused: Sequence[Tensor], *, keeps: bool) -> Iterator[list[Tensor]]:
    """Leave out deep blocks that are called inside, on this thread, if `reused` says what they found; or run them.

    Yields:
        What they find, if it is to be kept.
    """
    before, found = (now.kept, now.reused), list[Tensor]()
    now.kept, now.reused = found if keeps else None, reused or None
    try:
        yield found
    finally:
        now.kept, now.reused = before


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """Rows (…) as a batch (B,…) of the strides in which they were found, by which kernels are chosen."""
    first = rows[0]
    batch = first.new_empty_strided((len(rows), *first.shape), (first.numel(), *first.stride()))
    return torch.stack(list(rows), out=batch)
