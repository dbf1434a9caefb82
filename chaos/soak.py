"""`python -m chaos.soak`: steady load for a long time; memory must not grow."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from chaos.books import Result, table
from chaos.house import House
from chaos.traffic import FINAL, Traffic, mixed_job

LOAD = 0.8
MAX_GROWTH = 0.05
SAMPLE_S = 5.0
POLL_S = 0.5  # more frequent polling would take cores from the worker
CROWD, CROWD_S, CROWD_POLL_S = 96, 40.0, 1.0  # more clients than a worker has threads, so that all threads have started
STEPS = (4, 12)
KEPT_S = 60  # lifetime of results: short, so that the store reaches a steady state before sampling begins
WARM_UP_S = 2.5 * KEPT_S
PATIENCE_S = 2.0 * KEPT_S  # to be accepted, and again to end: unfinished records live no longer


@dataclass
class Memory:
    """Resident megabytes of one process over time."""

    samples: list[float] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Median of the last fifth of the samples relative to that of the first fifth; 0 is flat."""
        fifth = max(1, len(self.samples) // 5)
        return median(self.samples[-fifth:]) / median(self.samples[:fifth]) - 1


def capacity(traffic: Traffic) -> float:
    """Jobs per second with a full queue, measured until the last job is done."""
    started = time.monotonic()

    def client() -> None:
        while time.monotonic() < started + CROWD_S:
            _follow(traffic, poll_s=CROWD_POLL_S)

    with ThreadPoolExecutor(CROWD) as pool:
        clients = [pool.submit(client) for _ in range(CROWD)]
    _note_errors(traffic, clients)
    return len(traffic.finished) / (time.monotonic() - started)


def _follow(traffic: Traffic, *, poll_s: float = POLL_S) -> float | None:
    """Post a job and wait for its end; one that doesn't end in time stays unfinished in `traffic`.

    Returns:
        Seconds taken divided by its first `eta_seconds`; `None` if it had none, or did not end.

    Raises:
        TimeoutError: it was not accepted in time.
    """
    job_id = traffic.post(mixed_job(traffic.random, steps=STEPS), patience_s=PATIENCE_S)
    started, eta_s = time.monotonic(), None
    until = started + PATIENCE_S
    while time.monotonic() < until:
        job = traffic.look(job_id)
        if job is not None and job["status"] in FINAL:
            traffic.finished[job_id] = {"status": job["status"]}  # only the status: there are tens of thousands
            return (time.monotonic() - started) / eta_s if eta_s else None
        if job is not None and eta_s is None:
            started, eta_s = time.monotonic(), job["eta_seconds"]
        time.sleep(poll_s)
    return None


def _note_errors(traffic: Traffic, futures: Iterable[Future[Any]]) -> None:
    traffic.faults += [repr(error) for future in futures if (error := future.exception())]


def load(traffic: Traffic, rate: float, seconds: float) -> list[float]:
    """Post `rate` jobs per second, regardless of how many are unfinished.

    Returns:
        For each job that ended, the time taken divided by its first `eta_seconds`.
    """
    started = time.monotonic()
    followed = []
    with ThreadPoolExecutor(64) as pool:
        for number in range(int(rate * seconds)):
            time.sleep(max(0.0, started + number / rate - time.monotonic()))
            followed.append(pool.submit(_follow, traffic))
    _note_errors(traffic, followed)
    return [ratio for future in followed if not future.exception() and (ratio := future.result())]


@contextmanager
def watching(house: House, *, after_s: float) -> Iterator[dict[str, Memory]]:
    """Memory by process, sampled while the body runs, beginning `after_s` seconds after its start."""
    watched = {"gateway": house.gateways[0], "worker": house.workers[0], "Redis": house.store}
    memory = {name: Memory() for name in watched}
    stop = threading.Event()

    def watch() -> None:
        if stop.wait(after_s):
            return
        while not stop.wait(SAMPLE_S):
            for name, process in watched.items():
                memory[name].samples.append(process.resident_mb)

    with ThreadPoolExecutor(1) as pool:
        watcher = pool.submit(watch)
        try:
            yield memory
        finally:
            stop.set()
    watcher.result()


def books_of(traffic: Traffic) -> Result:
    """Compare the accepted jobs with the ends seen while polling: most records have expired by now."""
    ends = [job["status"] for job in traffic.finished.values()]
    return Result(
        name="9 soak",
        accepted=len(traffic.accepted),
        finished_once=ends.count("succeeded"),
        lost=len(ends) - ends.count("succeeded"),
        stuck=len(traffic.accepted.keys() - traffic.finished.keys()),
        faults=traffic.faults,
    )


def main() -> None:
    """Load a deployment to 80 % of its capacity, and report by how much its processes grow."""
    parser = argparse.ArgumentParser(prog="python -m chaos.soak", description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    seconds: float = 60 * parser.parse_args().minutes
    times = {
        "CYNOSURE_RESULT_TTL_S": str(KEPT_S),
        "CYNOSURE_UNFINISHED_TTL_S": str(2 * KEPT_S),
        "CYNOSURE_TOMBSTONE_TTL_S": str(KEPT_S),
    }
    with House(workers=1, settings=times) as house, Traffic(house.urls, seed=9) as traffic:
        rate = LOAD * capacity(traffic)
        print(f"{rate:.1f} jobs/s for {seconds / 60:g} minutes", flush=True)
        with watching(house, after_s=min(WARM_UP_S, seconds / 4)) as memory:
            ratios = load(traffic, rate, seconds)
        result = books_of(traffic)
        result.endless = len(house.endless_keys())
        result.rows = house.rows_left()
    for fault in result.faults[:20]:
        print(fault, file=sys.stderr)
    print(table([result]))
    print("\n| process | resident at first | at last | growth |\n|---|---|---|---|")
    for name, usage in memory.items():
        print(f"| {name} | {usage.samples[0]:.0f} MB | {usage.samples[-1]:.0f} MB | {usage.growth:+.1%} |")
    if ratios:
        close = sum(0.5 <= ratio <= 2 for ratio in ratios) / len(ratios)
        print(f"\nTime taken over eta_seconds: median {median(ratios):.2f}; within a factor of two: {close:.0%}")
    sys.exit(not result.holds or any(usage.growth > MAX_GROWTH for usage in memory.values()))


if __name__ == "__main__":
    main()
