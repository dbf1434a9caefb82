"""Sends a stream of requests: with a number of clients (closed loop), or at a rate (open loop)."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import numpy as np

from benchmarks.stream import Asked

TIMEOUT_S = 3600.0
WARM_UP = 4  # requests, at least, that don't count


class Drawing(Protocol):
    """What a load is sent to: a contender, or a part of Cynosure."""

    name: str

    async def draw(self, http: httpx.AsyncClient, asked: Asked) -> int:
        """Answer one request, and return the number of its pictures."""
        ...

    def cpu_seconds(self) -> dict[str, float]:
        """Spent so far, by module."""
        ...

    def peak_mib(self) -> float: ...


@dataclass(frozen=True)
class Answered:
    """An answered request; times in seconds on a monotonic clock, `done` at the last byte of the last picture."""

    asked: Asked
    sent: float
    done: float


@dataclass
class Measured:
    """The result of one load between `start` and `end`.

    If the load is equally high before and after (`is_steady`), a request that overlaps either end counts by the share
    of its time inside the window: if only requests that end inside counted, a few long ones ending a moment earlier or
    later would change the rate. In an open loop requests may pile up, so their time is not proportional to their work:
    there the requests that end inside the window count.

    Attributes:
        counted: requests whose latencies count, the same for each contender; by default those that end in the window,
            of which a quick contender has more than a slow one, and so others.
    """

    contender: str
    load: str
    start: float
    end: float
    is_steady: bool = True
    answered: list[Answered] = field(default_factory=list)
    counted: set[Asked] | None = None
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    peak_mib: float = 0.0

    @property
    def parts(self) -> list[tuple[Asked, float]]:
        """Every request, and the share of it that counts for the window."""
        if not self.is_steady:
            return [(request.asked, float(self._ends_inside(request))) for request in self.answered]
        return [(request.asked, self._share_inside(request)) for request in self.answered]

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def pictures(self) -> float:
        return sum(share * asked.count for asked, share in self.parts)

    @property
    def pictures_per_s(self) -> float:
        return self.pictures / self.seconds

    @property
    def latencies(self) -> list[float]:
        """Latencies of the requests that count."""
        return [request.done - request.sent for request in self.answered if self._counts(request)]

    def _counts(self, request: Answered) -> bool:
        return self._ends_inside(request) if self.counted is None else request.asked in self.counted

    def _ends_inside(self, request: Answered) -> bool:
        return self.start <= request.done < self.end

    def _share_inside(self, request: Answered) -> float:
        inside = max(0.0, min(request.done, self.end) - max(request.sent, self.start))
        return inside / (request.done - request.sent)

    def quantile(self, share: float) -> float:
        """Quantile of the latencies; NaN if no request counts."""
        return float(np.quantile(self.latencies or [np.nan], share))


async def _send(contender: Drawing, http: httpx.AsyncClient, asked: Asked, result: Measured) -> None:
    sent = time.monotonic()
    count = await contender.draw(http, asked)
    if count != asked.count:
        raise RuntimeError(f"{contender.name} returned {count} pictures for {asked}")
    result.answered.append(Answered(asked, sent, time.monotonic()))


async def closed_loop(
    contender: Drawing, stream: Iterator[Asked], clients: int, *, requests: int, warm_up: int | None = None
) -> Measured:
    """Run `clients` clients, each of which sends its next request when it has the pictures of its last one.

    The first `warm_up` requests don't count, by default one and a half for each client and at least `WARM_UP`; the next
    `requests` do. The window is open from the first of these until all of them are answered. The clients go on until
    every request sent before its end is answered.
    """
    if warm_up is None:
        warm_up = max(WARM_UP, 3 * clients // 2)
    counted = set[Asked]()
    result = Measured(contender.name, f"{clients} clients", math.inf, math.inf, counted=counted)
    started, ended = asyncio.Event(), asyncio.Event()
    numbered = enumerate(stream)
    unanswered, unfinished = requests, 0  # requests that count; those that were sent before the window's end

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal unanswered, unfinished
        while (is_open := unanswered > 0) or unfinished:
            number, asked = next(numbered)
            if warm_up <= number < warm_up + requests:
                counted.add(asked)
            if number == warm_up:
                result.start = time.monotonic()
                started.set()
            unfinished += is_open
            await _send(contender, http, asked, result)
            unfinished -= is_open
            unanswered -= asked in counted
            if not unanswered and not ended.is_set():
                result.end = time.monotonic()
                ended.set()

    await _measured(contender, result, clients, lambda http: [client(http) for _ in range(clients)], started, ended)
    return result


def arrivals(requests_per_s: float, seconds: float) -> Iterator[float]:
    """Random (Poisson) times before `seconds`, the same ones whenever it is called."""
    dice, at = random.Random(0), 0.0
    while (at := at + dice.expovariate(requests_per_s)) < seconds:
        yield at


async def open_loop(
    contender: Drawing, stream: Iterator[Asked], requests_per_s: float, *, warm_up_s: float, window_s: float
) -> Measured:
    """Send requests at random (Poisson) times, whether or not earlier ones are answered.

    Those that are sent in the window count.
    """
    begin = time.monotonic()
    start = begin + warm_up_s
    end = start + window_s
    sendings = [(begin + at, next(stream)) for at in arrivals(requests_per_s, warm_up_s + window_s)]
    counted = {asked for at, asked in sendings if at >= start}
    load = f"{requests_per_s:.1f} requests/s"
    result = Measured(contender.name, load, start, end, is_steady=False, counted=counted)
    started, ended = asyncio.Event(), asyncio.Event()

    async def send_at(http: httpx.AsyncClient, at: float, asked: Asked) -> None:
        await asyncio.sleep(at - time.monotonic())
        await _send(contender, http, asked, result)

    async def clock() -> None:
        await asyncio.sleep(start - time.monotonic())
        started.set()
        await asyncio.sleep(end - time.monotonic())
        ended.set()

    def work(http: httpx.AsyncClient) -> list[Coroutine[Any, Any, None]]:
        return [clock(), *(send_at(http, at, asked) for at, asked in sendings)]

    await _measured(contender, result, len(sendings), work, started, ended)
    return result


async def _measured(
    contender: Drawing,
    result: Measured,
    connections: int,
    work: Callable[[httpx.AsyncClient], list[Coroutine[Any, Any, None]]],
    started: asyncio.Event,
    ended: asyncio.Event,
) -> None:
    """Do the work, and add to the result what the contender takes between two events."""

    async def watch_cpu() -> None:
        await started.wait()
        before = contender.cpu_seconds()
        await ended.wait()
        spent = contender.cpu_seconds()
        result.cpu_seconds = {name: seconds - before.get(name, 0.0) for name, seconds in spent.items()}

    limits = httpx.Limits(max_connections=connections)
    async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits, trust_env=False) as http:
        await asyncio.gather(watch_cpu(), *work(http))
    result.peak_mib = contender.peak_mib()
