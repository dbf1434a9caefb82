"""What metrics cost: a scrape, and counting a job at the gateway, at a worker and in a tick."""

from __future__ import annotations

import statistics
import timeit

import httpx

from app.gateway.metrics.meters import GatewayMetrics
from cynosure.contract import JobStatus
from jobs.metrics import WorkerMetrics
from jobs.queue.gateway import Accepted
from models.engine.observing import Load, Tally

ROWS = 32


def scrape_s(url: str, times: int = 50) -> float:
    """The median."""
    with httpx.Client(trust_env=False) as http:
        taken = [http.get(url).raise_for_status().elapsed.total_seconds() for _ in range(times)]
    return statistics.median(taken)


def counting_us(times: int = 20_000) -> dict[str, float]:
    """Microseconds for all that is counted of a job at the gateway and at the worker, and of a tick."""
    gateway, worker, tally, busy = GatewayMetrics(), WorkerMetrics(), Tally(), Load(ROWS)
    accepted = Accepted("id", waits=True, is_cached=False)

    def at_gateway() -> None:
        gateway.request_answered("POST", "/generate", 202, 0.01)
        gateway.job_accepted("fashion", "generate", accepted, may_be_cached=True)
        for script in ("take", "charge", "accept"):
            gateway.store_answered(script, 0.001)

    def at_worker() -> None:
        worker.job_taken(attempt=1, waited_s=0.1)
        worker.attempt_ended("succeeded")
        worker.job_finished("fashion", JobStatus.SUCCEEDED)
        worker.job_drawn("fashion", pictures=1, taken_at=0.0)
        for script in ("claim", "heartbeat", "finish"):
            worker.store_answered(script, 0.001)

    def of_tick() -> None:
        busy.change(1)
        tally.evaluated("denoiser", 16, 0)
        tally.evaluated("classifier", 4, 0)
        tally.ticked(0.02)
        busy.change(-1)

    counted = {"gateway": at_gateway, "worker": at_worker, "tick": of_tick}
    return {name: timeit.timeit(count, number=times) / times * 1e6 for name, count in counted.items()}
