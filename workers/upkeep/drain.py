"""Draining: an orderly shutdown of the worker."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from celery.worker import state
from redis.exceptions import RedisError

from jobs.starting import signal_name
from workers.host import EngineHost

log = logging.getLogger(__name__)

STOP_NOW_S = 3.0  # to hand back the held jobs after a second signal


class Ending:
    """How the worker is to end: for good, or so that a supervisor restarts it.

    Args:
        is_supervised: whether a supervisor restarts it after a signal, too.

    Attributes:
        exit_code: `EX_OK`, or `EX_TEMPFAIL` to be restarted.
    """

    def __init__(self, *, is_supervised: bool) -> None:
        self.exit_code = os.EX_TEMPFAIL if is_supervised else os.EX_OK
        self._is_final = False

    def for_good(self) -> None:
        """Drain as after a SIGTERM, because an operator said so."""
        log.info("an operator drains this worker")
        self._is_final, self.exit_code = True, os.EX_OK
        os.kill(os.getpid(), signal.SIGTERM)

    def for_restart(self) -> None:
        """Drain as after a SIGTERM: jobs go back to the queue, and a supervisor restarts the worker."""
        if not self._is_final:
            self.exit_code = os.EX_TEMPFAIL
        os.kill(os.getpid(), signal.SIGTERM)


class Drain:
    """Shuts the worker down on SIGTERM or SIGINT.

    After the first signal the worker takes no more jobs. Jobs that have not begun go back to the queue at once; running
    ones may finish within the grace period, and those that do not go back too. After a second signal all jobs go back
    at once.

    Args:
        ending: says with which code the process ends.
        grace_s: seconds in which running jobs may finish.
        on_begin: called once at the start, to withdraw the worker's registration.
    """

    def __init__(self, host: EngineHost, ending: Ending, *, grace_s: float, on_begin: Callable[[], None]) -> None:
        self._host = host
        self._ending = ending
        self._on_begin = on_begin
        self._grace_s = grace_s
        self._timer = threading.Timer(grace_s, host.hand_back_all)
        self._timer.daemon = True

    def listen(self) -> None:
        """Handle the signals from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._shut_down)

    def finished(self) -> None:
        """Stop the timer: the worker has ended, and nothing is left to hand back."""
        self._timer.cancel()

    def _shut_down(self, number: int, frame: FrameType | None) -> None:
        # This runs on the main thread in a signal handler, so anything that may block runs on another thread.
        threading.Thread(target=self._begin, args=(signal_name(number),), name="drain", daemon=True).start()
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, self._stop_now)
        state.should_stop = os.EX_OK  # ends Celery's loop, as its own handler does

    def _begin(self, cause: str) -> None:
        log.info("%s: stopping; running jobs have %g s to finish", cause, self._grace_s)
        self._timer.start()
        self._host.begin_drain()
        try:
            self._on_begin()
        except RedisError as error:
            log.warning("could not withdraw the registration, which will expire by itself: %s", error)

    def _stop_now(self, number: int, frame: FrameType | None) -> None:
        threading.Thread(target=self._hand_back_and_end, name="stop-now", daemon=True).start()

    def _hand_back_and_end(self) -> None:
        log.info("a second signal: the held jobs go back now")
        self._host.hand_back_all()
        until = time.monotonic() + STOP_NOW_S
        while self._host.leases.held() and time.monotonic() < until:
            time.sleep(0.02)
        # Bypasses Celery, which would wait for its threads.
        os._exit(1 if self._host.leases.held() else self._ending.exit_code)
