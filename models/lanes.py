"""Lanes: threads that run ticks, or the networks of one tick, side by side, each with cores of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

Result = TypeVar("Result")

CORES = torch.get_num_threads()  # as the environment set it: lanes change it for threads that begin later


def compute_with(threads: int) -> None:
    """Have the calling thread's operators use this many threads from now on.

    torch settles a thread's count at its first operator that could be divided, from what any thread asked for last; so
    it is settled here first, and asked for only where it differs.
    """
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a device's cores are split.

    Attributes:
        lanes: batches that run at once.
        threads: threads that compute one of them.
    """

    lanes: int
    threads: int

    def __str__(self) -> str:
        return f"{self.lanes} x {self.threads} thread{'s' * (self.threads > 1)}"


class Runs(Protocol):
    """What runs the networks of a tick.

    Attributes:
        count: calls that it runs at once.
    """

    @property
    def count(self) -> int: ...

    def run(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        """The results of all `calls`, when all are over; started in this order, so put long ones first.

        Raises:
            Exception: what the first call that failed raised.
        """


class OwnLane:
    """The lane that the caller runs on: one call after the other."""

    count = 1

    def run(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        return [call() for call in calls]


class Lanes:
    """A pool of `layout.lanes` threads; close it when done. Not to be run from one of its own threads."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._pool = ThreadPoolExecutor(layout.lanes, "lane", initializer=compute_with, initargs=(layout.threads,))

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def count(self) -> int:
        return self.layout.lanes

    def run(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        futures = [self._pool.submit(call) for call in calls]
        wait(futures)
        return [future.result() for future in futures]

    def start(self, call: Callable[[], None]) -> None:
        """Have a lane make `call`, which must not raise, when one is free."""
        self._pool.submit(call)

    def close(self) -> None:
        """Wait until all calls are over."""
        self._pool.shutdown()


def let_go(error: Exception) -> None:
    """Drop the traceback: a stored exception would keep its frames' tensors alive (future → error → frame → future)."""
    error.__traceback__ = error.__context__ = None
