"""Leaving in good order."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from celery.signals import worker_shutting_down
from redis.exceptions import RedisError

from workers.host import EngineHost

log = logging.getLogger(__name__)

STOP_NOW_S = 3.0  # to hand back what is held, where that takes a second signal


class Drain:
    """What SIGTERM and SIGINT do to a worker.

    The first one: no more jobs are taken, those that have not begun go back to the queue at once, and those that have
    may finish within the grace; what is left then goes back too. A second one: everything goes back now.

    Args:
        grace_s: seconds for running jobs.
        on_begin: called once, to let the others know.
    """

    def __init__(self, host: EngineHost, *, grace_s: float, on_begin: Callable[[], None]) -> None:
        self._host = host
        self._on_begin = on_begin
        self._timer = threading.Timer(grace_s, host.hand_back_all)
        self._timer.daemon = True

    def listen(self) -> None:
        """Begin where Celery says that the worker shuts down, which it does on either signal."""
        worker_shutting_down.connect(self._shutting_down, weak=False)

    def finished(self) -> None:
        """The worker has stopped: nothing is left to hand back."""
        self._timer.cancel()

    def _shutting_down(self, **_: object) -> None:
        # On the main thread, inside a signal handler: what may wait for a lock or the store happens on another.
        threading.Thread(target=self._begin, name="drain", daemon=True).start()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop_now)

    def _begin(self) -> None:
        self._timer.start()
        self._host.begin_drain()
        try:
            self._on_begin()
        except RedisError as error:
            log.warning("could not withdraw, the registration runs out by itself: %s", error)

    def _stop_now(self, number: int, frame: FrameType | None) -> None:
        threading.Thread(target=self._hand_back_and_end, name="stop-now", daemon=True).start()

    def _hand_back_and_end(self) -> None:
        self._host.hand_back_all()
        until = time.monotonic() + STOP_NOW_S
        while self._host.leases.held() and time.monotonic() < until:
            time.sleep(0.02)
        os._exit(os.EX_OK if not self._host.leases.held() else 1)  # past Celery, which would wait for its threads
