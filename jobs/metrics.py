"""What a process counts of its work, for Prometheus. docs/operations.md lists the names, which are a contract."""

from __future__ import annotations

import time

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

from cynosure.contract import JobStatus

# They are a series more for each counter, which no query needs.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

STORE_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)
WAIT_S = (0.05, 0.25, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
STORAGE_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
STORAGE_OPERATIONS = ("put", "get", "copy", "delete")
OUTCOMES = ("succeeded", "failed", "handed_back", "faulted", "lost", "cancelled", "stale", "gone")
"""Ends of attempts: a final status, an `Outcome`, or the `Verdict` for which it was dropped."""
RUN_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """Those of every process that uses the store.

    No value of a label is a client's choice: models are served ones, and codes are those of docs/errors.md.

    Attributes:
        registry: all metrics of the process.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._finished = Counter(
            "cynosure_jobs_finished_total",
            "Jobs that have ended; code is the error's, or empty.",
            ["model", "status", "code"],
            registry=self.registry,
        )
        self._store_seconds = Histogram(
            "cynosure_store_seconds",
            "Time for a script of the store to answer, retries included.",
            ["script"],
            buckets=STORE_S,
            registry=self.registry,
        )

        self._storage_seconds = Histogram(
            "cynosure_picture_storage_seconds",
            "Time for S3 to answer, failures included.",
            ["operation"],
            buckets=STORAGE_S,
            registry=self.registry,
        )
        self._storage_failures = Counter(
            "cynosure_picture_storage_failures_total",
            "Operations on S3 that failed; none for an object that is not there.",
            ["operation"],
            registry=self.registry,
        )
        for operation in STORAGE_OPERATIONS:
            self._storage_seconds.labels(operation)
            self._storage_failures.labels(operation)  # 0 from the start, so that the first one shows as a rise

    def job_finished(self, model: str, status: JobStatus, code: str = "") -> None:
        """A job has ended here; `code` is that of its error."""
        self._finished.labels(model, status.value, code).inc()

    def store_answered(self, script: str, seconds: float) -> None:
        """The store has run a script, or failed to."""
        self._store_seconds.labels(script).observe(seconds)

    def storage_answered(self, operation: str, seconds: float) -> None:
        """The picture storage has done an operation of `STORAGE_OPERATIONS`, or failed to."""
        self._storage_seconds.labels(operation).observe(seconds)

    def storage_failed(self, operation: str) -> None:
        """The picture storage has failed to do an operation."""
        self._storage_failures.labels(operation).inc()


class WorkerMetrics(Metrics):
    """Those of a worker's jobs."""

    def __init__(self) -> None:
        super().__init__()
        self._queue_seconds = Histogram(
            "cynosure_job_queue_seconds",
            "Time from a job's acceptance until a worker first took it.",
            buckets=WAIT_S,
            registry=self.registry,
        )
        self._run_seconds = Histogram(
            "cynosure_job_run_seconds",
            "Time from a worker's taking a job until its pictures were stored.",
            ["model"],
            buckets=RUN_S,
            registry=self.registry,
        )
        self._images = Counter("cynosure_images_total", "Pictures drawn and stored.", ["model"], registry=self.registry)
        self._attempts = Counter(
            "cynosure_attempts_total", "Attempts at jobs, by how they ended.", ["outcome"], registry=self.registry
        )
        for outcome in OUTCOMES:
            self._attempts.labels(outcome)  # 0 from the start, so that the first one shows as a rise
        self._expired = Counter(
            "cynosure_leases_expired_total",
            "Leases that expired, each with a job that was then taken from its worker.",
            registry=self.registry,
        )

    def job_taken(self, *, attempt: int, waited_s: float) -> None:
        """A job was taken, `waited_s` after its acceptance."""
        if attempt == 1:
            self._queue_seconds.observe(max(0.0, waited_s))  # negative if the store's clock was set back

    def attempt_ended(self, outcome: str) -> None:
        """An attempt has ended; `outcome` is one of `OUTCOMES`."""
        self._attempts.labels(outcome).inc()

    def job_drawn(self, model: str, *, pictures: int, taken_at: float) -> None:
        """A job's pictures are stored; `taken_at` is the time at which it was taken, on `time.monotonic`'s clock."""
        self._images.labels(model).inc(pictures)
        self._run_seconds.labels(model).observe(time.monotonic() - taken_at)

    def lease_expired(self) -> None:
        """This worker's reaper took a job from one that did not renew its lease."""
        self._expired.inc()
