"""Runs rows through a network in batches in which each has the bits that it has alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Batching(Protocol):
    """How many rows may share a batch; `models.calibration.NetworkCalibration` implements it."""

    @property
    def knee(self) -> int:
        """Rows beyond which larger batches gain next to nothing."""

    def batches(self, rows: int, *, lanes: int, limit: int) -> list[int]:
        """Split `rows` into batches of at most `limit`, for `lanes` lanes."""

    def padded(self, rows: int) -> int:
        """The size that a batch of `rows` is padded to."""


class Alone:
    """Every row alone: for networks of which nothing else is known."""

    knee = 1

    def batches(self, rows: int, *, lanes: int, limit: int) -> list[int]:
        return [1] * rows

    def padded(self, rows: int) -> int:
        return rows


def picked(rows: Tensor, numbers: Sequence[int]) -> Tensor:
    """The rows of these ascending numbers, (len(numbers),…); `rows` itself if they are all."""
    return rows if len(numbers) == len(rows) else rows.index_select(0, index(tuple(numbers), rows.device))


def replaced(rows: Tensor, numbers: Sequence[int], by: Tensor) -> Tensor:
    """`rows` with others, (len(numbers),…), in place of those of these ascending numbers; neither is written to."""
    return by if len(numbers) == len(rows) else rows.index_copy(0, index(tuple(numbers), rows.device), by)


# Batch after batch is often of the same samples.
@lru_cache(maxsize=256)
def index(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers of rows as a tensor that is only read."""
    return torch.tensor(numbers, dtype=torch.long, device=device)


@lru_cache(maxsize=256)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A number for each row as a tensor that is only read."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def batch_calls(
    network: Callable[[Tensor], Result], rows: Tensor, batching: Batching, *, lanes: int = 1
) -> Iterator[tuple[int, Callable[[], Result]]]:
    """Yield calls of `network` that together take all `rows` (N,…), in order, each with its number of rows.

    A call's result has more rows than that if its batch is padded.
    """
    start = 0
    for count in batching.batches(len(rows), lanes=lanes, limit=batching.knee):
        batch = rows[start : start + count]
        padding = batching.padded(count) - count
        if padding:
            batch = torch.cat([batch, batch[:1].expand(padding, *batch.shape[1:])])
        yield count, partial(network, batch)
        start += count
