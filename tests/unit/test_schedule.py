"""The engine's policy: whose turn it is within a pack and between packs, priorities, room."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from models.engine.schedule import FEW_JOBS, FULL_HOUSE, PROMOTE_S, SHORT_SHARE, Rows, Schedule, Turns


@dataclass(eq=False)
class Sample:
    """All that the schedule sees of a sample, as plain values."""

    group: str
    priority: int
    rows_now: int
    wants_classifier_now: bool
    evaluations_left: int
    shape: tuple[int, ...] = (4, 8, 8)
    row_cost: float = 1.0
    is_cancelled: bool = False

    def is_expired(self, now: float) -> bool:
        return self.is_cancelled

    @property
    def is_done(self) -> bool:
        return self.evaluations_left == 0


def sample(
    group: str = "",
    *,
    priority: int = 0,
    free_scale: float | None = None,
    classifier_scale: float = 0.0,
    evaluations: int = 10,
    side: int = 8,
) -> Sample:
    rows = 1 if free_scale is None else 2
    return Sample(
        group, priority, rows, classifier_scale != 0, evaluations, shape=(4, side, side), row_cost=(side / 8) ** 2
    )


def test_samples_without_evaluations_left_wait_to_be_decoded_with_those_of_their_shape() -> None:
    schedule: Schedule[Sample] = Schedule(row_budget=8)
    done = [sample(str(number), evaluations=0, side=8 if number < 3 else 16) for number in range(4)]
    unfinished = sample("unfinished")
    for one in (*done, unfinished):
        schedule.enqueue(one, now=0.0)
    assert schedule.take(now=0.0) == [unfinished]
    assert not schedule.has_idle
    assert schedule.next_done is done[0]
    assert schedule.take_done(2) == done[:2]
    assert schedule.take_done(2) == [done[2]]
    assert schedule.take_done(2) == [done[3]]
    assert schedule.next_done is None
    schedule.put_back(done)
    for one in done:
        schedule.remove(one)
    assert not schedule.is_idle
    assert len(schedule) == 1


def ticks(
    schedule: Schedule[Sample], *, start: float = 0.0, each_s: float = 0.1
) -> Iterator[tuple[float, list[Sample]]]:
    """Run the schedule dry, one tick after the other: the time and the samples of every tick."""
    now = start
    while not schedule.is_idle:
        moving = take(schedule, now=now)
        yield now, moving
        for one in moving:
            one.evaluations_left -= 1
            if one.is_done:
                schedule.remove(one)
        now += each_s


def take(schedule: Schedule[Sample], *, now: float) -> list[Sample]:
    """What a tick would move that begins and ends now."""
    moving = schedule.take(now=now)
    schedule.put_back(moving)
    return moving


@pytest.mark.parametrize(("budget", "long_scale", "age_s"), [(4, None, 1.0), (4, None, PROMOTE_S + 1), (1, 3.0, 1.0)])
def test_a_short_job_overtakes_long_ones_that_fill_the_budget(
    budget: int, long_scale: float | None, age_s: float
) -> None:
    schedule = Schedule(row_budget=budget)
    for index in range(8):
        schedule.enqueue(sample(f"long {index}", free_scale=long_scale, evaluations=100), now=0.0)
    short = sample("short", free_scale=long_scale, evaluations=(asked := 4))
    schedule.enqueue(short, now=age_s)
    in_ticks = next(index for index, _ in enumerate(ticks(schedule, start=age_s)) if short.is_done)
    assert in_ticks <= asked * short.rows_now / (SHORT_SHARE * budget) + 1


def test_one_picture_does_not_wait_for_a_job_of_many_that_are_as_long() -> None:
    schedule = Schedule(row_budget=4)
    for _ in range(64):
        schedule.enqueue(sample("many", evaluations=100), now=0.0)
    one = sample("one", evaluations=100)
    schedule.enqueue(one, now=1.0)
    in_ticks = next(index for index, _ in enumerate(ticks(schedule, start=1.0)) if one.is_done)
    assert in_ticks <= 100 / (SHORT_SHARE * 4) + 1, "and the many take three times as long"


def test_a_long_job_is_not_overtaken_for_ever() -> None:
    schedule = Schedule(row_budget=1)
    long = sample("long", evaluations=50)
    schedule.enqueue(long, now=0.0)
    for count, (now, _) in enumerate(ticks(schedule)):
        if long.is_done:
            break
        schedule.enqueue(sample(f"short {count}", evaluations=2), now=now)  # twice what one row a tick can do
    assert long.is_done
    assert now < PROMOTE_S + 10


def test_higher_priorities_go_first_and_low_ones_rise_with_the_time_they_wait() -> None:
    schedule = Schedule(row_budget=1)
    schedule.enqueue(sample("low", priority=0, evaluations=2), now=0.0)
    schedule.enqueue(sample("high", priority=1, evaluations=100), now=10.0)
    assert [one.group for one in take(schedule, now=20.0)] == ["high"]
    assert [one.group for one in take(schedule, now=65.0)] == ["low"]


def test_a_tick_holds_the_rows_that_are_evaluated_now() -> None:
    schedule = Schedule(row_budget=4)
    for _ in range(3):
        schedule.enqueue(sample(free_scale=3.0), now=0.0)
    assert len(take(schedule, now=0.0)) == 2
    schedule.enqueue(sample("one row", evaluations=50), now=0.0)
    schedule.row_budget = 5
    assert sorted(one.rows_now for one in take(schedule, now=0.0)) == [1, 2, 2]


def test_rows_of_the_classifier_count_by_their_time() -> None:
    schedule = Schedule(row_budget=6, classifier_cost=0.5)
    for index in range(8):
        schedule.enqueue(sample(f"{index}", classifier_scale=2.0), now=0.0)
    assert len(take(schedule, now=0.0)) == 4


def test_what_would_be_done_latest_goes_first() -> None:
    schedule = Schedule(row_budget=2, tick_s=0.1)
    for number in range(FULL_HOUSE):
        schedule.enqueue(sample(f"{number}", evaluations=1), now=5.0)
    for group, evaluations, came in (("short, just now", 4, 5.0), ("long", 100, 5.0), ("short, long ago", 4, 0.0)):
        schedule.enqueue(sample(group, evaluations=evaluations), now=came)
    assert [one.group for one in take(schedule, now=5.0)] == ["long", "short, long ago"]


@pytest.mark.parametrize(("lanes", "first"), [(1, "long"), (4, "short, 5 s ago")])
def test_the_fewer_jobs_there_are_for_a_lane_the_more_the_order_is_that_of_arrival(lanes: int, first: str) -> None:
    schedule = Schedule(row_budget=2, tick_s=0.1, lanes=lanes)
    for number in range(FULL_HOUSE - 2):
        schedule.enqueue(sample(f"{number}", evaluations=1), now=5.0)
    schedule.enqueue(sample("short, 5 s ago", evaluations=4), now=0.0)
    schedule.enqueue(sample("long", evaluations=100), now=5.0)
    assert take(schedule, now=5.0)[0].group == first


def test_a_budget_of_one_row_still_serves_a_guided_sample() -> None:
    schedule = Schedule(row_budget=1)
    schedule.enqueue(sample(free_scale=3.0), now=0.0)
    assert len(take(schedule, now=0.0)) == 1


def test_no_sample_is_in_two_ticks_and_the_lanes_have_even_shares() -> None:
    schedule = Schedule(row_budget=4, lanes=2)
    for _ in range(6):
        schedule.enqueue(sample(), now=0.0)
    first, second = schedule.take(now=0.0), schedule.take(now=0.0)
    assert (len(first), len(second)) == (3, 3)
    assert not set(first) & set(second)
    assert schedule.take(now=0.0) == []
    schedule.put_back(first)
    assert set(schedule.take(now=0.1)) == set(first)


def several(jobs: dict[str, tuple[int, int]]) -> Schedule[Sample]:
    """A schedule of two lanes, with so many samples of so many evaluations of each job."""
    schedule = Schedule[Sample](row_budget=12, lanes=2, least_rows=3)
    for group, (count, evaluations) in jobs.items():
        for _ in range(count):
            schedule.enqueue(sample(group, evaluations=evaluations), now=0.0)
    return schedule


def test_a_tick_takes_its_first_job_whole_and_of_the_others_few_while_many_jobs_wait() -> None:
    schedule = several({"long": (4, 100), "short": (1, 10)} | {f"{number}": (1, 5) for number in range(2 * FEW_JOBS)})
    first, second = schedule.take(now=0.0), schedule.take(now=0.0)
    assert [one.group for one in first] == ["long"] * 4
    assert [one.group for one in second] == ["short", "0", "1"]


def test_ticks_are_not_shortened_for_the_others_of_a_few_jobs() -> None:
    schedule = several({"long": (2, 100)} | {f"{number}": (2, 5) for number in range(2 * FEW_JOBS - 1)})
    assert [len(schedule.take(now=0.0)) for _ in range(2)] == [6, 6]


def test_waiting_samples_take_the_place_of_padding() -> None:
    schedule = Schedule(
        row_budget=12, lanes=2, padded=lambda rows, _: Rows(4 * -(-rows.denoiser // 4), rows.classifier)
    )
    waiting = [sample(f"{number}", free_scale=3.0 if number == 3 else None) for number in range(9)]
    waiting[4].wants_classifier_now = True
    for number, one in enumerate(waiting):
        schedule.enqueue(one, now=0.01 * number)
    first = schedule.take(now=1.0)
    assert first == [*waiting[:4], *waiting[5:8]], (
        "a share of five rows, and three for which the denoiser's batch of eight has room"
    )
    assert set(schedule.take(now=1.0)) == set(waiting) - set(first)


def test_lanes_leave_no_sample_behind() -> None:
    schedule = Schedule(row_budget=8, classifier_cost=0.47, lanes=2)
    for _ in range(5):
        schedule.enqueue(sample(classifier_scale=2.0), now=0.0)
    assert [len(schedule.take(now=0.0)) for _ in range(2)] == [3, 2]


def test_few_rows_share_a_tick_while_nothing_is_moving() -> None:
    schedule = Schedule(row_budget=4, lanes=2, few_rows=4)
    schedule.enqueue(sample(), now=0.0)
    first = schedule.take(now=0.0)
    for _ in range(3):
        schedule.enqueue(sample(), now=0.0)
    beside = schedule.take(now=0.0)
    assert (len(first), len(beside)) == (1, 2)
    schedule.put_back(first + beside)
    assert len(schedule.take(now=0.1)) == 4


def test_rows_that_no_tick_can_hold_together_are_spread() -> None:
    schedule = Schedule(row_budget=4, lanes=4, few_rows=16)
    for _ in range(8):
        schedule.enqueue(sample(), now=0.0)
    assert [len(schedule.take(now=0.0)) for _ in range(4)] == [2, 2, 2, 2]


def test_a_cancelled_sample_is_given_up_when_its_tick_is_over() -> None:
    schedule = Schedule(row_budget=4)
    schedule.enqueue(sample(), now=0.0)
    [moving] = schedule.take(now=0.0)
    moving.is_cancelled = True
    assert schedule.expired(now=0.1) == []
    schedule.put_back([moving])
    assert schedule.expired(now=0.1) == [moving]


def test_a_pack_keeps_its_debt_while_all_its_samples_are_moving() -> None:
    turns = Turns(quantum_s=0.1)
    for name in ("slow", "quick"):
        assert turns.next([name], busy=["slow", "quick"]) == name
    turns.charge("slow", 1.0)
    turns.charge("quick", 0.15)
    assert turns.next(["quick"], busy=["slow", "quick"]) == "quick"
    turns.charge("quick", 0.1)
    assert turns.next(["slow", "quick"], busy=["slow", "quick"]) == "quick"


def test_packs_share_time_not_ticks() -> None:
    turns, seconds = Turns(quantum_s=0.1), {"slow": 0.0, "quick": 0.0}
    cost = {"slow": 0.4, "quick": 0.05}
    for _ in range(500):
        name = turns.next(["slow", "quick"], busy=["slow", "quick"])
        turns.charge(name, cost[name])
        seconds[name] += cost[name]
    assert 0.95 < seconds["slow"] / seconds["quick"] < 1.05


def test_an_idle_pack_saves_nothing_up() -> None:
    turns = Turns(quantum_s=0.1)
    for _ in range(50):
        turns.charge(turns.next(["busy"], busy=["busy"]), 0.1)
    taken = []
    for _ in range(10):
        taken.append(turns.next(["busy", "back"], busy=["busy", "back"]))
        turns.charge(taken[-1], 0.1)
    assert 4 <= taken.count("back") <= 6


def test_a_tick_holds_one_shape_that_of_the_sample_whose_turn_it_is() -> None:
    schedule = Schedule(row_budget=8)
    for index in range(12):
        schedule.enqueue(sample(f"{index}", evaluations=20, side=(8, 4, 16)[index % 3]), now=0.01 * index)
    all_ticks = [moving for _, moving in ticks(schedule)]
    assert all(len({one.shape for one in moving}) == 1 for moving in all_ticks)
    assert all(sum(one.row_cost * one.rows_now for one in moving) <= 8 for moving in all_ticks)
    assert len(all_ticks) == 20 + 20 + 2 * 20, "of the largest, which cost four rows each, two fit a tick"
    assert {one.shape for moving in all_ticks[:4] for one in moving} == {(4, side, side) for side in (4, 8, 16)}


def test_short_jobs_of_another_shape_take_no_more_than_their_share() -> None:
    schedule = Schedule(row_budget=4)
    for index in range(4):
        schedule.enqueue(sample(f"long {index}", evaluations=200), now=0.0)
    others = 0
    for count, (now, moving) in enumerate(ticks(schedule)):
        others += moving[0].shape != (4, 8, 8)
        if count == 150:
            break
        schedule.enqueue(sample(f"short {count}", evaluations=2, side=4), now=now)
    assert 0 < others <= 150 * SHORT_SHARE * 4 / 0.25
    assert others * 0.25 <= 151 * SHORT_SHARE * 4 + 4


def test_a_job_of_another_shape_waits_no_longer_than_one_of_the_same() -> None:
    def waits(side: int) -> float:
        schedule = Schedule(row_budget=1)
        schedule.enqueue(sample("long", evaluations=1000), now=0.0)
        short = sample("short", evaluations=5, side=side)
        schedule.enqueue(short, now=1.0)
        return next(now for now, _ in ticks(schedule, start=1.0) if short.is_done)

    assert waits(16) <= 4 * waits(8)
