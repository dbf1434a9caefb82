"""Finding lost jobs: leases that ran out, and waiting jobs whose bell never came or is yet to come."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from redis.exceptions import RedisError

from jobs.queue.doorbell import Doorbell
from jobs.queue.worker import WorkerStore
from workers.background import BackgroundThread

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

BELL_GRACE_S = 5.0  # a bell is fetched within milliseconds by an idle worker; kombu's poll takes a second at worst
LATE_S = 1.0  # for an answer that takes a millisecond
MAX_RINGS = 256  # a look; the rest follows at the next


class Reaper(BackgroundThread):
    """Every worker has one; a lock in Redis lets one of them look at a time.

    Args:
        mercy_s: after the store was away, so long no lease is held against its worker, which could not renew it.
    """

    def __init__(
        self, store: WorkerStore, doorbell: Doorbell, models: tuple[str, ...], *, interval_s: float, mercy_s: float
    ) -> None:
        super().__init__("reaper", every_s=interval_s)
        self._store = store
        self._doorbell = doorbell
        self._models = models
        self._mercy_s = mercy_s
        self._mercy_until = 0.0

    def _turn(self) -> None:
        try:
            if self._asked(lambda: self._store.try_reaper_lock(ttl_s=self._every_s)):
                self.look()
        except RedisError:
            self.store_was_away()
            raise

    def _asked(self, call: Callable[[], Answer]) -> Answer:
        """What the store answers; late, and it was away for longer than its client's own retries hide."""
        asked_at = time.monotonic()
        answer = call()
        if time.monotonic() - asked_at > LATE_S:
            self.store_was_away()
        return answer

    def store_was_away(self) -> None:
        """Hold no lease against anyone for a while."""
        self._mercy_until = time.monotonic() + self._mercy_s

    def look(self) -> None:
        """Send jobs of dead workers back to the queue, and ring for waiting jobs that nobody was told of."""
        self._asked(lambda: self._store.mend_times(self._models))
        expired = self._asked(self._store.expired_leases)
        if time.monotonic() >= self._mercy_until:
            for job_id in expired:
                outcome, model = self._reclaimed(job_id)
                log.warning("lease of job %s ran out: %s", job_id, outcome)
                if outcome == "queued" and model is not None:
                    self._doorbell.ring(model, job_id)
        for model in self._models:
            unheard = self._store.due(model, waiting_s=BELL_GRACE_S) - self._doorbell.pending_bells(model)
            for _ in range(min(unheard, MAX_RINGS)):
                self._doorbell.ring(model)

    def _reclaimed(self, job_id: str) -> tuple[str, str | None]:
        """As the store's `reclaim`; a job that cannot be reclaimed does not block the others."""
        try:
            return self._store.reclaim(job_id)
        except RedisError:
            raise
        except Exception:
            log.exception("job %s can't be taken back", job_id)
            return "kept", None
