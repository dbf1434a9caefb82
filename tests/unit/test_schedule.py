"""The engine's policy: turns between packs and groups, priorities, room."""

from __future__ import annotations

from models.engine.schedule import Sample, Schedule, Turns
from models.spec import Guidance, SampleSpec


def sample(group: str = "", *, priority: int = 0, free_scale: float | None = None) -> Sample:
    spec = SampleSpec(pack="p", label=0, group=group, priority=priority, guidance=Guidance(free_scale=free_scale))
    return Sample(spec=spec, num_positions=10, handle=None)


def test_groups_take_turns_and_higher_priorities_go_first() -> None:
    schedule = Schedule(row_budget=5)
    for one in (*(sample("many") for _ in range(4)), sample("few"), sample("late", priority=1)):
        schedule.enqueue(one)
    assert [one.spec.group for one in schedule.admit()] == ["late", "many", "few", "many", "many"]
    assert schedule.num_waiting == 1


def test_a_guided_sample_takes_two_rows_of_the_budget() -> None:
    schedule = Schedule(row_budget=4)
    for _ in range(3):
        schedule.enqueue(sample(free_scale=3.0))
    assert len(schedule.admit()) == 2
    assert not schedule.admit()


def test_a_budget_of_one_row_still_serves_a_guided_sample() -> None:
    schedule = Schedule(row_budget=1)
    schedule.enqueue(sample(free_scale=3.0))
    assert len(schedule.admit()) == 1


def test_packs_share_time_not_ticks() -> None:
    turns, seconds = Turns(quantum_s=0.1), {"slow": 0.0, "quick": 0.0}
    cost = {"slow": 0.4, "quick": 0.05}
    for _ in range(500):
        name = turns.next(["slow", "quick"])
        turns.charge(name, cost[name])
        seconds[name] += cost[name]
    assert 0.95 < seconds["slow"] / seconds["quick"] < 1.05


def test_an_idle_pack_saves_nothing_up() -> None:
    turns = Turns(quantum_s=0.1)
    for _ in range(50):
        turns.charge(turns.next(["busy"]), 0.1)
    taken = []
    for _ in range(10):
        taken.append(turns.next(["busy", "back"]))
        turns.charge(taken[-1], 0.1)
    assert 4 <= taken.count("back") <= 6
