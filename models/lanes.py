"""Lanes: threads that run ticks, or the networks of one tick, in parallel, each on separate cores."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

Result = TypeVar("Result")
Key = TypeVar("Key")

FIRST_CALLS = threading.RLock()
"""Held by calls that may create kernels. When oneDNN does so on two threads at once, some of them round differently."""
SMALL = 50_000_000
"""Most parameters of a network whose rows run on one core each: several threads would share too little work."""
CORES = torch.get_num_threads()  # read at import: lanes change the default of threads that start later
_NO_MEMORY = re.compile(r"DefaultCPUAllocator|(CUBLAS|CUDNN)_STATUS_\w*ALLOC\w*FAILED|(CUDA|HIP) error: out of memory")


def set_thread_count(threads: int) -> None:
    """Make the calling thread's operators use this many threads from now on.

    torch fixes a thread's count at its first parallel operator, or when it is queried, to the value that any thread set
    last. The query here fixes it, and it is set only if it differs.
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


@contextmanager
def first_call(called: set[Key], key: Key) -> Iterator[bool]:
    """Hold `FIRST_CALLS` if the call of this `key` is the first, and note it; whether it is."""
    if key in called:
        yield False
        return
    with FIRST_CALLS:
        yield key not in called
        called.add(key)


class CallRunner(Protocol):
    """Runs the networks of a tick.

    Attributes:
        count: calls that run at once.
    """

    @property
    def count(self) -> int: ...

    def run(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        """Run all `calls` and return their results when all are done. They start in this order: put long ones first.

        Raises:
            Exception: the exception of the first call, in this order, that failed.
        """


class InlineLane:
    """The lane that the caller itself runs on: calls run one after the other."""

    count = 1

    def run(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        return [call() for call in calls]


class Lanes:
    """A pool of `layout.lanes` threads; close it when done. Do not call `run` on one of the pool's threads."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._pool = ThreadPoolExecutor(layout.lanes, "lane", initializer=set_thread_count, initargs=(layout.threads,))

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def count(self) -> int:
        return self.layout.lanes

    def run(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        """Run calls as `CallRunner` does; the caller's thread is one of the lanes if it has as many threads as one.

        A hand-over to another thread takes a tenth of the time of a small network's row.
        """
        done: list[Future[Result]] = [Future() for _ in calls]
        left = iter(zip(calls, done, strict=True))

        def take() -> None:
            for call, future in left:
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)

        takes_part = torch.get_num_threads() == self.layout.threads
        others = [self._pool.submit(take) for _ in range(min(len(calls), self.count) - takes_part)]
        if takes_part:
            take()
        wait(others)
        return [future.result() for future in done]

    def start(self, call: Callable[[], None]) -> None:
        """Run `call`, which must not raise, as soon as a lane is free."""
        self._pool.submit(call)

    def close(self) -> None:
        """Wait until all calls are done, then end the threads."""
        self._pool.shutdown()


def drop_traceback(error: Exception) -> None:
    """Drop the traceback: a stored exception would keep its frames' tensors alive (future → error → frame → future)."""
    error.__traceback__ = error.__context__ = None


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether the device had no memory. Only torch's own allocator on GPUs has a class of its own for that."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    )


def is_of_the_device(error: BaseException) -> bool:
    """Whether an error says something of the device rather than of what was to be computed."""
    return isinstance(error, torch.AcceleratorError) or ran_out_of_memory(error)
