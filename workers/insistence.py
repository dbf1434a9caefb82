"""Saying it again until the store has heard it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from redis.exceptions import RedisError

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
Answer = TypeVar("Answer")


class Insistence:
    """Repeats calls that the store did not answer: finished pictures are too dear to drop for a restart of Redis.

    Args:
        patience_s: after which the last error is raised; the reaper then gives the job to another.
    """

    def __init__(self, *, patience_s: float) -> None:
        self._patience_s = patience_s
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """Make every repeated call raise its last error."""
        self._given_up.set()

    def on(self, call: Callable[[], Answer]) -> Answer:
        """What `call` answers, which must be harmless to make twice.

        Raises:
            RedisError: no answer within the patience.
        """
        until, pause_s = time.monotonic() + self._patience_s, FIRST_PAUSE_S
        while True:
            try:
                return call()
            except RedisError as error:
                if time.monotonic() > until or self._given_up.wait(pause_s):
                    raise
                log.warning("the store did not take it, trying again: %s", error)
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
