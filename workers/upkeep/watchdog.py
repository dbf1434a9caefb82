"""Noticing a worker that no longer hears its bells."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from redis.exceptions import RedisError

from jobs.queue.doorbell import Doorbell
from workers.background import BackgroundThread
from workers.claims import Claims

log = logging.getLogger(__name__)


class Watchdog(BackgroundThread):
    """Ends the worker, in good order, where bells wait, there is room, and none was heard for `silence_s`.

    Celery's consumers have been seen to reconnect to Redis and consume nothing (celery #8030, #8091, #9054). A
    supervisor starts the worker anew.
    """

    def __init__(
        self,
        claims: Claims,
        doorbell: Doorbell,
        models: Sequence[str],
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
            unheard = self.bells_wait()
        except RedisError:  # nobody hears bells while the store is away, or full
            unheard = False
        self._waiting_s = self._waiting_s + self._every_s if unheard else 0.0
        if self._waiting_s >= self._silence_s:
            log.error("bells have waited for %.0f s and none was heard: this worker starts anew", self._waiting_s)
            self._on_deaf()
            self._stopping.set()

    def bells_wait(self) -> bool:
        """Whether there are bells that this worker should have heard.

        Raises:
            RedisError: nobody could have.
        """
        self._doorbell.check_hearing()
        return (
            self._claims.has_room
            and self._claims.silent_s >= self._silence_s / 10
            and any(self._doorbell.pending_bells(model) for model in self._models)
        )
