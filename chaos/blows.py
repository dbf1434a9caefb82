"""Faults to inject into a deployment; each returns the seconds until the affected jobs go on."""

from __future__ import annotations

import signal
import time

from chaos.house import LEASE_S, RECOVERY_S, House
from chaos.traffic import Traffic
from harness.processes import Process, wait_until
from harness.s3 import S3Server


def _has_moved_on(house: House, affected: dict[str, int]) -> bool:
    """Whether every affected job has been requeued, has a new attempt, or has ended."""
    for job_id, attempt in affected.items():
        status, current = house.job_fields(job_id, "status", "attempt")
        if status == "running" and int(current) <= attempt:
            return False
    return True


def kill_worker(house: House, worker: Process) -> float:
    """Send SIGKILL, without restarting it. Seconds until its jobs are requeued, or held by another worker."""
    affected = house.held_by(worker)
    worker.kill()
    return wait_until(lambda: _has_moved_on(house, affected), seconds=RECOVERY_S, what="the killed worker's jobs go on")


def kill_store(house: House, *, down_s: float = 1.0) -> float:
    """Send SIGKILL and restart from the append-only file. Seconds from the kill until a job finishes."""
    started = time.monotonic()
    house.store.kill()
    time.sleep(down_s)
    house.start_store()
    house.wait_for_finish()
    return time.monotonic() - started


def lose_master(house: House, *, for_good: bool) -> float:
    """Kill the store's master, or only cut it off, once it has a replica. Seconds until a job finishes with that."""
    assert house.replicated is not None
    house.replicated.wait_until_whole()
    started = time.monotonic()
    if for_good:
        house.replicated.fail_over()
    else:
        house.replicated.cut_off()
    house.wait_for_finish()
    return time.monotonic() - started


def pause_worker(house: House, worker: Process, traffic: Traffic) -> float:
    """Send SIGSTOP, wait longer than a lease until its jobs have moved on, then send SIGCONT."""
    affected = house.held_by(worker)
    worker.signal(signal.SIGSTOP)
    seconds = wait_until(
        lambda: _has_moved_on(house, affected), seconds=RECOVERY_S, what="the paused worker's jobs go on"
    )
    traffic.wait_all(patience_s=0.1)  # jobs that are final now must not be changed by the worker's late writes
    time.sleep(max(0.0, LEASE_S - seconds))
    worker.signal(signal.SIGCONT)
    return seconds


def kill_storage(house: House, storage: S3Server, *, down_s: float) -> float:
    """Send SIGKILL to the storage of the pictures and restart it. Seconds from its return until a job finishes."""
    storage.kill()
    time.sleep(down_s)
    storage.start()
    return wait_for_next(house)


def pause_storage(house: House, storage: S3Server, *, seconds: float) -> float:
    """Send SIGSTOP to the storage of the pictures, and later SIGCONT. Seconds from then until a job finishes."""
    storage.signal(signal.SIGSTOP)
    time.sleep(seconds)
    storage.signal(signal.SIGCONT)
    return wait_for_next(house)


def wait_for_next(house: House) -> float:
    """Seconds until another job finishes."""
    started = time.monotonic()
    house.wait_for_finish()
    return time.monotonic() - started


def wait_for_held(house: House, worker: Process) -> None:
    """Wait until the worker holds jobs, so that a fault affects some."""
    wait_until(lambda: bool(house.held_by(worker)), seconds=RECOVERY_S, what=f"{worker.name} holds jobs")
