"""Finding lost jobs: those with expired leases, and waiting ones whose bell got lost or is not due yet."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from typing import TypeVar

from redis.exceptions import RedisError

from jobs.queue.doorbell import MOST_BELLS, Doorbell
from jobs.queue.worker import WorkerStore
from workers.background import BackgroundThread

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

BELL_GRACE_S = 5.0  # a bell is fetched within milliseconds by an idle worker; kombu's poll takes a second at worst
LATE_S = 1.0  # an answer normally takes a millisecond
MAX_RINGS = 256  # per look; the next look rings for the rest


class Reaper(BackgroundThread):
    """Takes jobs back from dead workers. Every worker has a reaper; a lock in Redis lets one of them look at a time.

    Args:
        models: the worker's models, as they are at any time.
        grace_after_outage_s: seconds after a store outage during which expired leases are ignored, because their
            workers could not renew them.
    """

    def __init__(
        self,
        store: WorkerStore,
        doorbell: Doorbell,
        models: Collection[str],
        *,
        interval_s: float,
        grace_after_outage_s: float,
    ) -> None:
        super().__init__("reaper", every_s=interval_s)
        self._store = store
        self._doorbell = doorbell
        self._models = models
        self._grace_after_outage_s = grace_after_outage_s
        self._grace_until = 0.0

    def _turn(self) -> None:
        try:
            if self._timed(lambda: self._store.try_reaper_lock(ttl_s=self._every_s)):
                self.look()
        except RedisError:
            self.note_outage()
            raise

    def _timed(self, call: Callable[[], Answer]) -> Answer:
        """Call the store, and take a late answer for an outage that the client's own retries have bridged."""
        called_at = time.monotonic()
        answer = call()
        if time.monotonic() - called_at > LATE_S:
            self.note_outage()
        return answer

    def note_outage(self) -> None:
        """Start the grace period after a store outage."""
        self._grace_until = time.monotonic() + self._grace_after_outage_s

    def look(self) -> None:
        """Send jobs with expired leases back to the queue, and ring for waiting jobs that have no bell."""
        self._timed(lambda: self._store.mend_times(tuple(self._models)))
        expired = self._timed(self._store.expired_leases)
        if time.monotonic() >= self._grace_until:
            for job_id in expired:
                outcome, model = self._reclaimed(job_id)
                log.warning("the lease expired: %s", outcome, extra={"job": job_id})
                if outcome == "queued" and model is not None:
                    self._doorbell.ring(model, job_id)
        for model in tuple(self._models):
            due = self._store.due(model, waiting_s=BELL_GRACE_S)
            missing = min(due, MOST_BELLS) - self._doorbell.pending_bells(model)
            for _ in range(min(missing, MAX_RINGS)):
                self._doorbell.ring(model)

    def _reclaimed(self, job_id: str) -> tuple[str, str | None]:
        """Reclaim a job as the store does; one that cannot be reclaimed does not block the others."""
        try:
            return self._store.reclaim(job_id)
        except RedisError:
            raise
        except Exception:
            log.exception("the job can't be reclaimed", extra={"job": job_id})
            return "kept", None
