"""Turns of the contenders under every load."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from benchmarks.bound import OfflineBound
from benchmarks.contenders import Contender
from benchmarks.load import Measured, closed_loop, open_loop
from benchmarks.serving.table import Table, Turn
from benchmarks.stream import mixed_stream, plain
from models.pack import Pack

OPEN_WARM_UP_S = 10.0

Loading = Callable[[Contender, int], Coroutine[Any, Any, Measured]]
"""Puts a contender under a load; the number of the round decides which requests it has."""


@contextmanager
def running(contender: Contender, pack: Pack) -> Iterator[None]:
    """Run the contender inside the context, after warming it up the first time."""
    with contender.running():
        if not contender.is_warm:
            asyncio.run(closed_loop(contender, mixed_stream(pack, seed=0), 2, warm_up=0, requests=4))
            contender.is_warm = True
        yield


def closed(pack: Pack, clients: int, requests: int) -> Loading:
    """So many clients, each of whom sends its next request when the last one is answered."""

    def load(contender: Contender, number: int) -> Coroutine[Any, Any, Measured]:
        stream = mixed_stream(pack, seed=1000 * number + clients)
        return closed_loop(contender, stream, clients, requests=requests)

    return load


def at_random(pack: Pack, requests_per_s: float, requests: int) -> Loading:
    """Requests at random times, about so many of which count."""
    window_s = requests / requests_per_s

    def load(contender: Contender, number: int) -> Coroutine[Any, Any, Measured]:
        stream = mixed_stream(pack, seed=1000 * number + 7)
        return open_loop(contender, stream, requests_per_s, warm_up_s=OPEN_WARM_UP_S, window_s=window_s)

    return load


async def short_among_long(contender: Contender, pack: Pack) -> float:
    """Seconds that a 4-step request takes while 16 jobs of 100 steps are running."""
    long = [plain(pack, number, steps=100, count=2) for number in range(16)]
    short = plain(pack, 97, steps=4)
    async with httpx.AsyncClient(timeout=3600, trust_env=False) as http:
        jobs = [asyncio.create_task(contender.draw(http, asked)) for asked in long]
        await asyncio.sleep(1.5)
        started = time.perf_counter()
        await contender.draw(http, short)
        seconds = time.perf_counter() - started
        if all(job.done() for job in jobs):
            raise RuntimeError("the long jobs ended before the short one: nothing was measured")
        await asyncio.gather(*jobs)
    return seconds


class Race:
    """The contenders, who take turns under each load.

    Every other round is in the reverse order, so that a machine which slows down, or speeds up, is the same for all.
    """

    def __init__(self, contenders: Sequence[Contender], pack: Pack, bound: OfflineBound, table: Table) -> None:
        self._contenders = contenders
        self._pack = pack
        self._bound = bound
        self._table = table

    def run(self, clients: Sequence[int], *, requests: int, rounds: int) -> None:
        """Closed loops of so many clients, then half load at random times, and a short request among long ones.

        Of each load `requests` count, and at least two of each client, in all `rounds` together.
        """
        self._bound.measure()
        self._table.head()
        for number in clients:
            self._measure(closed(self._pack, number, max(requests, 2 * number) // rounds), rounds)
        some = [(asked, 1.0) for asked in itertools.islice(mixed_stream(self._pack, seed=7), 100)]
        half = 0.5 * len(some) / self._bound.seconds(some)
        self._measure(at_random(self._pack, half, requests // rounds), rounds)
        print("\nCynosure against each:")
        self._table.ratios()
        if len(clients) > 1:
            print(f"\nFrom {clients[0]} to {clients[-1]} clients:")
            self._table.growth()
        print("\na 4-step request while 16 jobs of 100 steps, two pictures each, are running")
        for contender in self._contenders:
            with running(contender, self._pack):
                seconds = asyncio.run(short_among_long(contender, self._pack))
            print(f"  {contender.name:<27} {seconds:>7.2f} s", flush=True)
            self._table.keep({"contender": contender.name, "load": "short among long", "seconds": seconds})

    def _measure(self, load: Loading, rounds: int) -> None:
        turns: dict[str, list[Turn]] = {contender.name: [] for contender in self._contenders}
        for number in range(rounds):
            for contender in self._contenders if number % 2 == 0 else reversed(self._contenders):
                with running(contender, self._pack):
                    measured = asyncio.run(load(contender, number))
                self._bound.measure()
                turns[contender.name].append(Turn.of(measured, self._bound))
        for some in turns.values():
            self._table.add(some)
