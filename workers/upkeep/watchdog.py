"""Detecting a worker that no longer receives its bells."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from redis.exceptions import RedisError

from jobs.queue.doorbell import Doorbell
from workers.background import BackgroundThread
from workers.claims import Claims

log = logging.getLogger(__name__)


class Watchdog(BackgroundThread):
    """Drains the worker if it has room and bells wait, but it has received none for `silence_s`.

    Celery's consumers have been seen to reconnect to Redis and consume nothing (celery #8030, #8091, #9054). A
    supervisor restarts the worker.
    """

    def __init__(
        self,
        claims: Claims,
        doorbell: Doorbell,
        models: Collection[str],
        *,
        silence_s: float,
        on_deaf: Callable[[], None],
    ) -> None:
        super().__init__("watchdog", every_s=silence_s / 10)
        self._claims = claims
        self._doorbell = doorbell
        self._models = models
        self._silence_s = silence_s
        self._on_deaf = on_deaf
        self._waiting_s = 0.0

    def _turn(self) -> None:
        try:
            is_deaf = self.misses_bells()
        except RedisError:  # no worker receives bells while the store is away, or full
            is_deaf = False
        self._waiting_s = self._waiting_s + self._every_s if is_deaf else 0.0
        if self._waiting_s >= self._silence_s:
            log.error(
                "no bell received for %.0f s although bells wait: draining this worker for a restart",
                self._waiting_s,
            )
            self._on_deaf()
            self._stopping.set()

    def misses_bells(self) -> bool:
        """Whether bells wait that this worker should have received.

        Raises:
            RedisError: the store is away or full, so no worker could have received them.
        """
        self._doorbell.check_fetching()
        return (
            self._claims.has_room
            and self._claims.silent_s >= self._silence_s / 10
            and any(self._doorbell.pending_bells(model) for model in tuple(self._models))
        )
