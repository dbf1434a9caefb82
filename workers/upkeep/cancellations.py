"""Stopping cancelled jobs at once."""

from __future__ import annotations

import threading

from jobs.queue.worker import WorkerStore
from workers.background import BackgroundThread
from workers.leases import LeaseKeeper

LISTEN_S = 1.0


class Cancellations(BackgroundThread):
    """Frees a cancelled job's rows at the next tick. The next heartbeat catches what this misses during an outage."""

    def __init__(self, store: WorkerStore, leases: LeaseKeeper) -> None:
        super().__init__("cancellations")
        self._store = store
        self._leases = leases
        self.listening = threading.Event()

    def _turn(self) -> None:
        with self._store.endings() as endings:
            self.listening.set()
            while not self._stopping.is_set():
                job_id = endings.next(timeout_s=LISTEN_S)
                if job_id is not None:
                    self._leases.check(job_id)
