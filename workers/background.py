"""Threads that attend to a worker beside its engine."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod


class BackgroundThread(ABC):
    """A thread with an end; `start` it once, `stop` it once.

    Args:
        name: of the thread.
        stop_s: seconds that `stop` waits for it to end, or `None` for as long as it takes.
    """

    def __init__(self, name: str, *, stop_s: float | None = None) -> None:
        self._stop_s = stop_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(self._stop_s)

    @abstractmethod
    def _run(self) -> None:
        """The thread's work, until `_stopping` is set."""
