"""Retrying calls to the job store, and to the storage of pictures, until they answer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from redis.exceptions import RedisError

from cynosure.errors import StorageUnavailable

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
Answer = TypeVar("Answer")


class Retrying:
    """Retries calls that were not answered: finished pictures cost too much to lose to a restart of Redis or S3.

    Args:
        timeout_s: seconds after which the last error is raised; the reaper then gives the job to another worker.
    """

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Retry no longer: a call that fails from now on raises its error."""
        self._stopped.set()

    def call(self, function: Callable[[], Answer]) -> Answer:
        """Call `function`, which must be idempotent, until it is answered; returns its answer.

        Raises:
            RedisError, StorageUnavailable: no answer within `timeout_s`, or retrying was stopped.
        """
        until, pause_s = time.monotonic() + self._timeout_s, FIRST_PAUSE_S
        while True:
            try:
                return function()
            except (RedisError, StorageUnavailable) as error:
                if time.monotonic() > until or self._stopped.wait(pause_s):
                    raise
                log.warning("a call to the store failed, trying again: %s", error)
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
