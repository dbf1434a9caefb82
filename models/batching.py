"""Runs rows through a network in batches in which each has the bits that it has alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
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
