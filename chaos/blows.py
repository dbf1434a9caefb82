"""What can be done to a house, each with the time until all that was hit goes on."""

from __future__ import annotations

import signal
import time

from chaos.house import LEASE_S, RECOVERY_S, House
from chaos.traffic import Traffic
from harness.processes import Process, wait_until


def _has_moved_on(house: House, hit: dict[str, int]) -> bool:
    """Whether every job that was hit is in the queue again, or further."""
    for job_id, attempt in hit.items():
        status, now = house.job_fields(job_id, "status", "attempt")
        if status == "running" and int(now) <= attempt:
            return False
    return True


def kill_worker(house: House, worker: Process) -> float:
    """SIGKILL; somebody has to start it again. Seconds until its jobs wait for another, or are with it."""
    hit = house.held_by(worker)
    worker.kill()
    return wait_until(lambda: _has_moved_on(house, hit), seconds=RECOVERY_S, what="the killed worker's jobs go on")


def kill_store(house: House, *, down_s: float = 1.0) -> float:
    """SIGKILL, and start again from its append-only file. Seconds from the kill until a job finishes."""
    started = time.monotonic()
    house.store.kill()
    time.sleep(down_s)
    house.start_store()
    house.wait_for_finish()
    return time.monotonic() - started


def pause_worker(house: House, worker: Process, traffic: Traffic) -> float:
    """SIGSTOP for longer than a lease, until others have its jobs, and then SIGCONT."""
    hit = house.held_by(worker)
    worker.signal(signal.SIGSTOP)
    seconds = wait_until(lambda: _has_moved_on(house, hit), seconds=RECOVERY_S, what="the paused worker's jobs go on")
    traffic.wait_all(patience_s=0.1)  # what is seen final now must be the same after its late writes
    time.sleep(max(0.0, LEASE_S - seconds))
    worker.signal(signal.SIGCONT)
    return seconds


def wait_for_held(house: House, worker: Process) -> None:
    """Wait until the worker holds jobs, so that a blow hits something."""
    wait_until(lambda: bool(house.held_by(worker)), seconds=RECOVERY_S, what=f"{worker.name} holds jobs")
