"""Threads that serve a worker alongside its engine."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod

from redis.exceptions import RedisError

log = logging.getLogger(__name__)

PAUSE_S = 1.0  # after a fault
STOP_S = 2.0  # to wait for a thread to end: the store's client may retry a call for half a minute


class BackgroundThread(ABC):
    """A thread that repeats `_turn` and survives its exceptions; `start` it once, `stop` it once.

    Args:
        name: the thread's name.
        every_s: seconds before each turn; 0 if a turn itself waits, for a second at most.
    """

    def __init__(self, name: str, *, every_s: float = 0.0) -> None:
        self._every_s = every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Take no further turn. A turn that waits longer than `STOP_S` for the store ends with the process."""
        self._stopping.set()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        pause_s = self._every_s
        while not self._stopping.wait(pause_s):
            pause_s = self._every_s
            try:
                self._turn()
            except RedisError as error:
                log.warning("%s: the store did not answer, trying again: %s", self._thread.name, error)
                pause_s = PAUSE_S
            except Exception:
                log.exception("%s: failed, trying again", self._thread.name)
                pause_s = PAUSE_S

    @abstractmethod
    def _turn(self) -> None:
        """The thread's work, once."""
