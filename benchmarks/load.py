"""Sending a stream: so many clients at once (closed loop), or so many requests a second (open loop)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from benchmarks.contenders import Contender
from benchmarks.stream import Asked

TIMEOUT_S = 3600.0


@dataclass
class Measured:
    """What came of one stream; latencies in seconds, from sending to the last byte of the last picture."""

    contender: str
    load: str
    pictures: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    memory_mib: float = 0.0

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return self.pictures / self.seconds

    def quantile(self, share: float) -> float:
        return float(np.quantile(self.latencies, share))

    def as_json(self) -> dict[str, Any]:
        quantiles = {f"p{round(share * 100)}_s": self.quantile(share) for share in (0.5, 0.95, 0.99)}
        return {
            "contender": self.contender,
            "load": self.load,
            "pictures": self.pictures,
            "seconds": self.seconds,
            "pictures_per_s": self.rate,
            **quantiles,
            "cpu_seconds": self.cpu_seconds,
            "memory_mib": self.memory_mib,
        }


def _client(connections: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=TIMEOUT_S, limits=httpx.Limits(max_connections=connections))


async def closed_loop(contender: Contender, stream: Sequence[Asked], clients: int) -> Measured:
    """`clients` of them, each sending its next request when it has its last one's pictures."""
    result = Measured(contender.name, f"{clients} clients")
    waiting: Iterator[Asked] = iter(stream)

    async def one(http: httpx.AsyncClient) -> None:
        for asked in waiting:
            await _draw(contender, http, asked, result)

    return await _measured(contender, result, clients, lambda http: [one(http) for _ in range(clients)])


async def open_loop(contender: Contender, stream: Sequence[Asked], requests_per_s: float) -> Measured:
    """Requests that arrive at random (Poisson) times, whether or not earlier ones are done."""
    result = Measured(contender.name, f"{requests_per_s:.1f} requests/s")
    dice = random.Random(0)
    at = np.cumsum([dice.expovariate(requests_per_s) for _ in stream])

    async def one(http: httpx.AsyncClient, delay: float, asked: Asked) -> None:
        await asyncio.sleep(delay)
        await _draw(contender, http, asked, result)

    return await _measured(
        contender,
        result,
        len(stream),
        lambda http: [one(http, float(delay), asked) for delay, asked in zip(at, stream, strict=True)],
    )


async def _draw(contender: Contender, http: httpx.AsyncClient, asked: Asked, result: Measured) -> None:
    started = time.perf_counter()
    count = await contender.draw(http, asked)
    result.latencies.append(time.perf_counter() - started)
    result.pictures += count


async def _measured(contender: Contender, result: Measured, connections: int, work: Any) -> Measured:
    before = contender.cpu_seconds()
    started = time.perf_counter()
    async with _client(connections) as http:
        await asyncio.gather(*work(http))
    result.seconds = time.perf_counter() - started
    result.cpu_seconds = {name: spent - before.get(name, 0.0) for name, spent in contender.cpu_seconds().items()}
    result.memory_mib = contender.memory_mib()
    return result
