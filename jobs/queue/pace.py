"""A model's throughput, and the time that a waiting job has left. No I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cynosure.contract import JobStatus
from jobs.pictures.keeping import Picture
from jobs.queue.record import JobRecord

UNMEASURED_RETRY_S = 10
LONGEST_RETRY_S = 600


@dataclass(frozen=True, slots=True)
class Outlook:
    """Number of jobs that start before this one, and seconds until it should be done; `None`: started, or unknown."""

    queue_position: int | None = None
    eta_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """A job as it is at one moment; with its first picture, not read yet, if that was asked for and is there."""

    record: JobRecord
    outlook: Outlook
    picture: Picture | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Recent work of all workers: sums that `finish.lua` decays by a factor of e per minute in which jobs ran.

    Attributes:
        jobs: jobs that succeeded.
        pictures: their pictures.
        work: their network evaluations.
        busy_s: seconds in which at least one job ran.
        ran_s: sum of the jobs' run times; more than `busy_s` if several run at once.
    """

    jobs: float = 0.0
    pictures: float = 0.0
    work: float = 0.0
    busy_s: float = 0.0
    ran_s: float = 0.0

    @classmethod
    def of(cls, fields: Mapping[bytes, bytes]) -> Pace:
        """From the Redis hash, which also has other fields."""

        def number(name: bytes) -> float:
            return float(fields.get(name, 0))

        return cls(
            jobs=number(b"jobs"),
            pictures=number(b"pictures"),
            work=number(b"work"),
            busy_s=number(b"busy_ms") / 1000,
            ran_s=number(b"ran_ms") / 1000,
        )

    @property
    def is_known(self) -> bool:
        return self.jobs > 0

    @property
    def pictures_per_second(self) -> float | None:
        """Pictures drawn in a second in which any job ran; `None`: unknown."""
        return self.pictures / self.busy_s if self.busy_s > 0 else None

    @property
    def evaluations_per_second(self) -> float | None:
        """Network evaluations done in such a second; `None`: unknown."""
        return self.work / self.busy_s if self.busy_s > 0 else None

    def seconds_for(self, jobs: int) -> int:
        """Whole seconds in which this many jobs are done: a `Retry-After`."""
        if not self.is_known:
            return UNMEASURED_RETRY_S
        return min(LONGEST_RETRY_S, max(1, math.ceil(jobs * self.busy_s / self.jobs)))


def outlook_of(record: JobRecord, pace: Pace, *, position: int | None, now_ms: int) -> Outlook:
    """Outlook of a queued or running job; `position` counts the jobs ahead, if it waits; `now_ms` is Redis's clock."""
    if record.status is JobStatus.RUNNING and record.evaluations_done and record.started_ms is not None:
        ran_s = (now_ms - record.started_ms) / 1000
        return Outlook(None, max(0.0, ran_s * (record.evaluations - record.evaluations_done) / record.evaluations_done))
    if not pace.is_known:
        return Outlook(position, None)
    run_s = pace.ran_s * record.evaluations / pace.work
    if record.status is JobStatus.RUNNING and record.started_ms is not None:
        return Outlook(None, max(0.0, run_s - (now_ms - record.started_ms) / 1000))
    wait_s = (position or 0) * pace.busy_s / pace.jobs
    if record.not_before_ms is not None:
        wait_s += max(0.0, (record.not_before_ms - now_ms) / 1000)
    return Outlook(position, wait_s + run_s)
