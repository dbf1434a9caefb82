"""Loads of the benchmark's clients, and turns under them, with contenders that only wait."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.contenders import Contender
from benchmarks.load import Measured, closed_loop, open_loop
from benchmarks.serving import race
from benchmarks.serving.race import Race
from benchmarks.serving.table import Table
from benchmarks.stream import Asked, mixed_stream
from models.pack import open_pack

FASHION = open_pack("fashion")
WARM_UP, REQUESTS = 5, 20


class Waiting(Contender):
    """Takes so many seconds for a step, and has no processes."""

    def __init__(self, step_s: float, name: str = "waiting") -> None:
        self.name, self.step_s = name, step_s
        self.drawn: list[Asked] = []
        self.is_warm = True

    @contextmanager
    def running(self) -> Iterator[None]:
        yield

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


class Linear:
    """A bound of 0.05 ms a row, that notes when it is measured."""

    def __init__(self, contenders: list[Waiting]) -> None:
        self._contenders = contenders
        self.drawn: list[list[int]] = []

    def measure(self) -> None:
        self.drawn.append([len(contender.drawn) for contender in self._contenders])

    def seconds(self, parts: Iterable[tuple[Asked, float]]) -> float:
        return sum(0.00005 * share * asked.denoiser_rows for asked, share in parts)

    def share_of_peak(self, parts: Iterable[tuple[Asked, float]], seconds: float) -> float:
        return 0.5 * self.seconds(parts) / seconds


def test_every_other_round_of_a_race_is_in_the_reverse_order_and_all_turns_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "OPEN_WARM_UP_S", 0.05)
    monkeypatch.setattr(race, "short_among_long", lambda contender, pack: asyncio.sleep(0, 1.0))
    contenders = [Waiting(0.0001, "cynosure"), Waiting(0.0002, "slow")]
    bound = Linear(contenders)
    of_two = Race(contenders, FASHION, bound, Table(tmp_path, png_s=0.0))  # type: ignore[arg-type]
    of_two.run([2], requests=2 * REQUESTS, rounds=2)
    drawn = np.diff(np.array(bound.drawn), axis=0)
    assert [list(turn.nonzero()[0]) for turn in drawn] == [[0], [1], [1], [0]] * 2
    ours, slow = json.loads((tmp_path / "serving.json").read_text())[:2]
    assert (ours["contender"], slow["contender"]) == ("cynosure", "slow")
    for row in (ours, slow):
        assert row["requests"] == 2 * REQUESTS
        assert len(row["windows_s"]) == 2
        assert row["share_of_peak"] == pytest.approx(0.5 * row["share_of_bound"])
    both = {asked for contender in contenders for asked in contender.drawn}
    assert both >= {
        asked for number in range(2) for asked in itertools.islice(mixed_stream(FASHION, seed=1000 * number + 2), 4, 24)
    }
    assert ours["p95_s"] < slow["p95_s"]
