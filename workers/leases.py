"""Keeping the jobs that this worker holds: one heartbeat for all of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from redis.exceptions import RedisError

from app.jobs.record import Claim, Verdict
from app.jobs.store import WorkerStore
from models.engine import Handle

log = logging.getLogger(__name__)


class HeldJob:
    """A claimed job and the pictures on their way for it."""

    def __init__(self, claim: Claim, handles: list[Handle]) -> None:
        self.claim = claim
        self.handles = handles
        self.verdict = Verdict.OK

    @property
    def step(self) -> int:
        return sum(handle.position for handle in self.handles)

    @property
    def steps(self) -> int:
        request = self.claim.request
        return sum(handle.num_positions for handle in self.handles) or request.steps * request.num_images

    def give_up(self, verdict: Verdict) -> None:
        """Free the rows; whoever waits for the handles sees them cancelled and looks at `verdict`."""
        self.verdict = verdict
        for handle in self.handles:
            handle.cancel()


class LeaseKeeper:
    """Renews every lease and reports every step, in one pipelined call a beat; gives up what is no longer ours."""

    def __init__(self, store: WorkerStore, *, interval_s: float, on_beat: Callable[[], None]) -> None:
        self._store = store
        self._interval_s = interval_s
        self._on_beat = on_beat
        self._held: dict[str, HeldJob] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def hold(self, job: HeldJob) -> None:
        with self._lock:
            self._held[job.claim.job_id] = job

    def let_go(self, job: HeldJob) -> None:
        with self._lock:
            self._held.pop(job.claim.job_id, None)

    def held(self) -> list[HeldJob]:
        with self._lock:
            return list(self._held.values())

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            try:
                self._beat()
                self._on_beat()
            except RedisError as error:  # the next beat tries again; a lease outlives many of them
                log.warning("heartbeat failed, trying again: %s", error)

    def _beat(self) -> None:
        jobs = {job.claim.job_id: job for job in self.held()}
        if not jobs:
            return
        verdicts = self._store.heartbeat({key: (job.claim.attempt, job.step, job.steps) for key, job in jobs.items()})
        for job_id, verdict in verdicts.items():
            if verdict is not Verdict.OK:
                log.info("job %s is no longer ours: %s", job_id, verdict)
                jobs[job_id].give_up(verdict)
