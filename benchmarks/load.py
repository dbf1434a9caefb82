"""Sending a stream: so many clients at once (closed loop), or so many requests a second (open loop)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from benchmarks.contenders import Contender
from benchmarks.stream import Asked

TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Answered:
    """One request that got its pictures; times in seconds on one clock, to the last byte of the last picture."""

    asked: Asked
    sent: float
    done: float


@dataclass
class Measured:
    """What came of one load between `start` and `end`.

    Where the load is as full before and after, a request that was under way at either end counts by the share of its
    time that lies between: were those alone counted that finish there, a few long ones would make another pace of it
    by a moment's difference. In an open loop requests may pile up, and their time is not their work: there those count.
    """

    contender: str
    load: str
    start: float
    end: float
    is_steady: bool = True
    answered: list[Answered] = field(default_factory=list)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    peak_mib: float = 0.0

    @property
    def parts(self) -> list[tuple[Asked, float]]:
        """Every request, and the share of it that counts for the window."""
        if not self.is_steady:
            return [(one.asked, float(self._ends_inside(one))) for one in self.answered]
        return [
            (one.asked, max(0.0, min(one.done, self.end) - max(one.sent, self.start)) / (one.done - one.sent))
            for one in self.answered
        ]

    @property
    def pictures_per_s(self) -> float:
        return sum(share * asked.count for asked, share in self.parts) / (self.end - self.start)

    @property
    def latencies(self) -> list[float]:
        """Of the requests that were finished in the window."""
        return [one.done - one.sent for one in self.answered if self._ends_inside(one)]

    def _ends_inside(self, one: Answered) -> bool:
        return self.start <= one.done < self.end

    def quantile(self, share: float) -> float:
        """Of the latencies; not a number where nobody was answered in the window."""
        return float(np.quantile(self.latencies or [np.nan], share))


async def _send(contender: Contender, http: httpx.AsyncClient, asked: Asked, result: Measured) -> None:
    sent = time.monotonic()
    count = await contender.draw(http, asked)
    if count != asked.count:
        raise RuntimeError(f"{contender.name} gave {count} pictures for {asked}")
    result.answered.append(Answered(asked, sent, time.monotonic()))


async def closed_loop(
    contender: Contender, stream: Iterator[Asked], clients: int, *, warm_up_s: float, window_s: float
) -> Measured:
    """`clients` of them, each sending its next request when it has its last one's pictures.

    They go on until everything that was sent before the window's end is there.
    """
    start = time.monotonic() + warm_up_s
    result = Measured(contender.name, f"{clients} clients", start, start + window_s)
    of_window = 0

    async def one(http: httpx.AsyncClient) -> None:
        nonlocal of_window
        while (counts := time.monotonic() < result.end) or of_window:
            of_window += counts
            await _send(contender, http, next(stream), result)
            of_window -= counts

    return await _measured(contender, result, clients, lambda http: [one(http) for _ in range(clients)])


async def open_loop(
    contender: Contender, stream: Iterator[Asked], requests_per_s: float, *, warm_up_s: float, window_s: float
) -> Measured:
    """Requests that arrive at random (Poisson) times, whether or not earlier ones are done."""
    begin = time.monotonic()
    start = begin + warm_up_s
    result = Measured(contender.name, f"{requests_per_s:.1f} requests/s", start, start + window_s, is_steady=False)
    dice = random.Random(0)
    arrivals: list[float] = []
    at = begin
    while (at := at + dice.expovariate(requests_per_s)) < result.end:
        arrivals.append(at)

    async def one(http: httpx.AsyncClient, at: float, asked: Asked) -> None:
        await asyncio.sleep(at - time.monotonic())
        await _send(contender, http, asked, result)

    return await _measured(
        contender,
        result,
        len(arrivals),
        lambda http: [one(http, at, asked) for at, asked in zip(arrivals, stream, strict=False)],
    )


async def _measured(contender: Contender, result: Measured, connections: int, work: Any) -> Measured:
    async def watch_cpu() -> None:
        await asyncio.sleep(result.start - time.monotonic())
        before = contender.cpu_seconds()
        await asyncio.sleep(result.end - time.monotonic())
        spent = contender.cpu_seconds()
        result.cpu_seconds = {name: seconds - before.get(name, 0.0) for name, seconds in spent.items()}

    limits = httpx.Limits(max_connections=connections)
    async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits) as http:
        everything: list[Coroutine[Any, Any, None]] = [watch_cpu(), *work(http)]
        await asyncio.gather(*everything)
    result.peak_mib = contender.peak_mib()
    return result
