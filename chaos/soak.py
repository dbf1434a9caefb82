"""`python -m chaos.soak`: steady load for a long time; memory must stay where it is."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median

from chaos.books import Result, table
from chaos.house import House
from chaos.traffic import FINAL, Traffic, mixed_job

LOAD = 0.8
MAX_GROWTH = 0.05
SAMPLE_S = 5.0
POLL_S = 0.1
STEPS = (4, 12)
KEPT_S = 60  # results, so that the store reaches its steady state while one watches
WARM_UP_S = 2.5 * KEPT_S


@dataclass
class Memory:
    """Resident megabytes of one process over time."""

    samples: list[float] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """The last fifth over the first one, in medians; 0 is flat."""
        fifth = max(1, len(self.samples) // 5)
        return median(self.samples[-fifth:]) / median(self.samples[:fifth]) - 1


def capacity(traffic: Traffic, seconds: float) -> float:
    """Jobs a second where as many wait as are taken."""
    done: list[float] = []
    until = time.monotonic() + seconds

    def client() -> None:
        while time.monotonic() < until:
            job_id = traffic.post(mixed_job(traffic.random, steps=STEPS))
            _wait_for(traffic, job_id)
            done.append(time.monotonic())

    with ThreadPoolExecutor(24) as pool:
        for _ in range(24):
            pool.submit(client)
    settled = [moment for moment in done if until - seconds * 0.7 <= moment <= until]
    return len(settled) / (seconds * 0.7)


def _wait_for(traffic: Traffic, job_id: str) -> float | None:
    """Wait for its end; seconds that it took over those that it said at first, or `None` where it said none."""
    started, eta_s = time.monotonic(), None
    while True:
        job = traffic.look(job_id)
        if job is not None and job["status"] in FINAL:
            traffic.finished[job_id] = job
            return (time.monotonic() - started) / eta_s if eta_s else None
        if job is not None and eta_s is None:
            started, eta_s = time.monotonic(), job["eta_seconds"]
        time.sleep(POLL_S)


def load(house: House, traffic: Traffic, rate: float, seconds: float) -> tuple[dict[str, Memory], list[float]]:
    """Post at `rate` a second, whatever comes back, and watch memory; the warm-up is not watched.

    Returns:
        Memory by process, and for each job the time that it took over the `eta_seconds` that it said at first.
    """
    ratios: list[float] = []

    def follow() -> None:
        if ratio := _wait_for(traffic, traffic.post(mixed_job(traffic.random, steps=STEPS))):
            ratios.append(ratio)

    watched = {"gateway": house.gateways[0], "worker": house.workers[0], "Redis": house.store}
    memory = {name: Memory() for name in watched}
    stop = threading.Event()

    def watch() -> None:
        if stop.wait(min(WARM_UP_S, seconds / 4)):
            return
        while not stop.wait(SAMPLE_S):
            for name, process in watched.items():
                memory[name].samples.append(process.resident_mb)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.monotonic()
    with ThreadPoolExecutor(64) as pool:
        for number in range(int(rate * seconds)):
            time.sleep(max(0.0, started + number / rate - time.monotonic()))
            pool.submit(follow)
            if number % 50 == 0:
                _forget(traffic)
        stop.set()
    watcher.join()
    return memory, ratios


def _forget(traffic: Traffic) -> None:
    """Drop what has finished: its record expires long before the end."""
    for job_id in list(traffic.finished):
        if traffic.finished[job_id]["status"] != "succeeded":
            traffic.faults.append(f"job {job_id} ended as {traffic.finished[job_id]['status']}")
        traffic.accepted.pop(job_id, None)
        del traffic.finished[job_id]


def main() -> None:
    """Load a house to 80 % of what it can do, and say by how much its processes grow."""
    parser = argparse.ArgumentParser(prog="python -m chaos.soak", description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    minutes: float = parser.parse_args().minutes
    times = {
        "CYNOSURE_RESULT_TTL_S": str(KEPT_S),
        "CYNOSURE_UNFINISHED_TTL_S": str(2 * KEPT_S),
        "CYNOSURE_TOMBSTONE_TTL_S": str(KEPT_S),
    }
    with House(workers=1, settings=times) as house:
        traffic = Traffic(house.urls, seed=9)
        rate = LOAD * capacity(traffic, 20.0)
        print(f"{rate:.1f} jobs/s for {minutes:g} minutes", flush=True)
        memory, ratios = load(house, traffic, rate, 60 * minutes)
        _forget(traffic)
        posted = int(rate * 60 * minutes)
        result = Result(name="9 soak", accepted=posted, stuck=len(traffic.accepted), faults=traffic.faults)
        result.finished_once = posted - result.stuck - result.lost
        result.endless = len(house.endless_keys())
        result.rows = house.rows_left()
        traffic.close()
    for fault in traffic.faults[:20]:
        print(fault, file=sys.stderr)
    print(table([result]))
    print("\n| process | resident at first | at last | growth |\n|---|---|---|---|")
    for name, one in memory.items():
        print(f"| {name} | {one.samples[0]:.0f} MB | {one.samples[-1]:.0f} MB | {one.growth:+.1%} |")
    if ratios:
        close = sum(0.5 <= ratio <= 2 for ratio in ratios) / len(ratios)
        print(f"\nTime taken over eta_seconds: median {median(ratios):.2f}; within a factor of two: {close:.0%}")
    sys.exit(not result.holds or any(one.growth > MAX_GROWTH for one in memory.values()))


if __name__ == "__main__":
    main()
