"""The figures of the schedule, by simulation with measured costs: no machine changes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.queueing.__main__ import PEER, half_load, means, simulated
from benchmarks.queueing.costs import MEASURED
from benchmarks.queueing.simulation import Clients

WHOLE = "latest first, whole shares"
SECONDS = {"A": 90, "C": 300}  # about as many requests on both


@pytest.mark.parametrize("machine", MEASURED)
@pytest.mark.parametrize("clients", [1, 8, 32])
def test_the_schedule_is_ahead_of_a_task_each_in_pictures_medians_and_slowest_answers(
    clients: int, machine: str
) -> None:
    ours, peer = (
        means(name, MEASURED[machine], Clients(clients), seconds=SECONDS[machine], streams=3)
        for name in ("Cynosure", PEER)
    )
    assert ours[0] > 1.08 * peer[0]
    assert ours[1] < 0.9 * peer[1]
    assert ours[2] < peer[2]


@pytest.mark.parametrize("machine", MEASURED)
def test_at_half_load_the_median_is_shorter_and_slow_answers_no_later_than_with_a_task_each(machine: str) -> None:
    costs = MEASURED[machine]
    ours, peer = (
        [
            latency
            for seed in (7, 1007)
            for latency in simulated(name, costs, half_load(costs), seconds=2 * SECONDS[machine], seed=seed).latencies
        ]
        for name in ("Cynosure", PEER)
    )
    assert len(ours) == len(peer)
    for share, most in ((0.5, 0.6), (0.95, 1.05), (0.99, 1.05)):
        assert np.quantile(ours, share) < most * np.quantile(peer, share)


def test_shorter_ticks_make_the_slowest_answers_sooner_and_cost_a_tenth_of_the_pictures() -> None:
    ours, whole = (
        simulated(name, MEASURED["A"], Clients(8), seconds=SECONDS["A"], seed=8) for name in ("Cynosure", WHOLE)
    )
    assert ours.quantile(0.95) < 0.75 * whole.quantile(0.95)
    assert ours.pictures_per_s > 0.85 * whole.pictures_per_s


def test_costs_lie_on_lines_between_the_measured_sizes() -> None:
    assert MEASURED["A"].denoiser(5) == pytest.approx((6.5 + 19.0) / 2)
    assert MEASURED["A"].denoiser(96) == 2 * MEASURED["A"].denoiser(48)
    assert MEASURED["A"].classifier(0) == 0
    assert MEASURED["A"].batching.least < MEASURED["A"].batching.knee


def test_a_ticks_rows_are_split_or_padded_to_the_sizes_of_batches() -> None:
    costs = replace(MEASURED["C"], tick_ms=0.0)
    padded_ms, split_ms = costs.denoiser(16), costs.denoiser(6) + costs.denoiser(3)
    assert costs.tick_s(15, 0, alone=False) == pytest.approx(padded_ms / 1000)
    assert costs.tick_s(9, 0, alone=False) == pytest.approx(split_ms / 1000)
    assert costs.tick_s(30, 0, alone=True) == pytest.approx(padded_ms / 1000)
