"""The figures of the schedule, by simulation with measured costs: no machine changes them."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.queueing.__main__ import PEER, half_load, simulated
from benchmarks.queueing.costs import MEASURED
from benchmarks.queueing.simulation import Clients

WHOLE = "latest first, whole shares"


@pytest.mark.parametrize("machine", MEASURED)
@pytest.mark.parametrize("clients", [1, 8, 32])
def test_the_schedule_is_ahead_of_a_task_each_in_pictures_medians_and_slowest_answers(
    clients: int, machine: str
) -> None:
    ours, peer = (
        simulated(name, MEASURED[machine], Clients(clients), seconds=300, seed=clients) for name in ("Cynosure", PEER)
    )
    assert ours.pictures_per_s > 1.08 * peer.pictures_per_s
    assert ours.quantile(0.5) < peer.quantile(0.5)
    assert ours.quantile(0.95) < peer.quantile(0.95)


@pytest.mark.parametrize("machine", MEASURED)
def test_at_half_load_and_random_times_it_answers_sooner_than_a_task_each(machine: str) -> None:
    costs = MEASURED[machine]
    ours, peer = (
        [
            latency
            for seed in (7, 1007)
            for latency in simulated(name, costs, half_load(costs), seconds=600, seed=seed).latencies
        ]
        for name in ("Cynosure", PEER)
    )
    assert len(ours) == len(peer)
    for share in (0.5, 0.95, 0.99):
        assert np.quantile(ours, share) < np.quantile(peer, share)


def test_shorter_ticks_make_the_slowest_answers_sooner_and_cost_a_tenth_of_the_pictures() -> None:
    ours, whole = (simulated(name, MEASURED["A"], Clients(8), seconds=300, seed=8) for name in ("Cynosure", WHOLE))
    assert ours.quantile(0.95) < 0.75 * whole.quantile(0.95)
    assert ours.pictures_per_s > 0.85 * whole.pictures_per_s


def test_costs_lie_on_lines_between_the_measured_sizes() -> None:
    assert MEASURED["A"].denoiser(5) == pytest.approx((6.5 + 19.0) / 2)
    assert MEASURED["A"].denoiser(96) == 2 * MEASURED["A"].denoiser(48)
    assert MEASURED["A"].classifier(0) == 0
    assert MEASURED["A"].least < MEASURED["A"].knee
