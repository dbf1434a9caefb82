"""Loads of the benchmark's clients, against contenders that only wait."""

from __future__ import annotations

import asyncio
import itertools

import httpx
import pytest

from benchmarks.contenders import Contender
from benchmarks.load import Measured, closed_loop, open_loop
from benchmarks.stream import Asked, mixed_stream
from models.pack import open_pack

FASHION = open_pack("fashion")
WARM_UP, REQUESTS = 5, 20


class Waiting(Contender):
    """Takes so many seconds for a step, and has no processes."""

    def __init__(self, step_s: float) -> None:
        self.name, self.step_s = "waiting", step_s
        self.drawn: list[Asked] = []

    async def draw(self, http: httpx.AsyncClient, asked: Asked) -> int:
        self.drawn.append(asked)
        await asyncio.sleep(asked.steps * self.step_s)
        return asked.count

    def cpu_seconds(self) -> dict[str, float]:
        return {"app": float(len(self.drawn))}

    def peak_mib(self) -> float:
        return 1.0


def measured(step_s: float, clients: int) -> tuple[Waiting, Measured]:
    waiting, stream = Waiting(step_s), mixed_stream(FASHION, seed=1)
    return waiting, asyncio.run(closed_loop(waiting, stream, clients, warm_up=WARM_UP, requests=REQUESTS))


@pytest.mark.parametrize("clients", [1, 4])
def test_the_same_requests_count_however_quick_a_contender_is(clients: int) -> None:
    expected = set(itertools.islice(mixed_stream(FASHION, seed=1), WARM_UP, WARM_UP + REQUESTS))
    for step_s in (0.0001, 0.001):
        waiting, result = measured(step_s, clients)
        assert result.counted == expected
        assert len(result.latencies) == REQUESTS
        assert sum(result.cpu_seconds.values()) >= REQUESTS - clients
        assert len(waiting.drawn) >= WARM_UP + REQUESTS


def test_the_window_is_open_until_all_that_counts_is_answered() -> None:
    _, result = measured(0.0005, 4)
    counted = [each for each in result.answered if each.asked in (result.counted or ())]
    assert result.start <= min(each.sent for each in counted)
    assert result.end >= max(each.done for each in counted)


def test_in_an_open_loop_what_is_sent_in_the_window_counts_although_it_ends_later() -> None:
    waiting = Waiting(0.01)
    stream = mixed_stream(FASHION, seed=1)
    result = asyncio.run(open_loop(waiting, stream, 50.0, warm_up_s=0.2, window_s=0.5))
    assert len(result.latencies) == len(result.counted or ()) < len(waiting.drawn)
    assert any(each.done > result.end for each in result.answered if each.asked in (result.counted or ()))
