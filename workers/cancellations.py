"""Hearing at once of jobs that were cancelled."""

from __future__ import annotations

import logging
import threading

from redis.exceptions import RedisError

from app.jobs.worker_store import WorkerStore
from workers.background import BackgroundThread
from workers.leases import LeaseKeeper

log = logging.getLogger(__name__)

PAUSE_S = 1.0  # between tries while the store is away; a heartbeat finds what was missed


class Cancellations(BackgroundThread):
    """Frees a cancelled job's rows at the next tick, not only when its lease is renewed."""

    def __init__(self, store: WorkerStore, leases: LeaseKeeper) -> None:
        super().__init__("cancellations")
        self._store = store
        self._leases = leases
        self.listening = threading.Event()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except RedisError as error:
                log.warning("not listening for cancelled jobs, trying again: %s", error)
                self._stopping.wait(PAUSE_S)
            except Exception:  # the thread must outlive any fault
                log.exception("not listening for cancelled jobs, trying again")
                self._stopping.wait(PAUSE_S)

    def _listen(self) -> None:
        with self._store.endings() as endings:
            self.listening.set()
            while not self._stopping.is_set():
                job_id = endings.next(timeout_s=PAUSE_S)
                if job_id is not None:
                    self._leases.check(job_id)
