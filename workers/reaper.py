"""Finding lost jobs: leases that ran out, and queued jobs whose bell never came."""

from __future__ import annotations

import logging
import threading

from redis.exceptions import RedisError

from app.jobs.doorbell import Doorbell
from app.jobs.store import WorkerStore

log = logging.getLogger(__name__)

BELL_GRACE_S = 5.0  # a bell is fetched within milliseconds by an idle worker; kombu's poll takes a second at worst
MAX_RINGS = 256  # a look; the rest follows at the next


class Reaper:
    """Every worker has one; a lock in Redis lets one of them look at a time."""

    def __init__(self, store: WorkerStore, doorbell: Doorbell, models: tuple[str, ...], *, interval_s: float) -> None:
        self._store = store
        self._doorbell = doorbell
        self._models = models
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            try:
                if self._store.try_reaper_lock(ttl_s=self._interval_s):
                    self.look()
            except RedisError as error:
                log.warning("the reaper could not look, trying again: %s", error)

    def look(self) -> None:
        """Send jobs of dead workers back to the queue, and ring for queued jobs that nobody was told of."""
        for job_id in self._store.expired_leases():
            outcome, request = self._store.reclaim(job_id)
            log.warning("lease of job %s ran out: %s", job_id, outcome)
            if outcome == "queued" and request is not None:
                self._doorbell.ring(job_id, request.model, request.priority)
        for model in self._models:
            # While bells wait, queued jobs are told of already; only an empty list means that some are not.
            if self._doorbell.pending_bells(model) == 0:
                for job_id, priority in self._store.stale_queued(model, older_than_s=BELL_GRACE_S, limit=MAX_RINGS):
                    self._doorbell.ring(job_id, model, priority)
