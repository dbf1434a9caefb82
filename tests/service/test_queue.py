"""Who is next: turns by work, ageing, places, pace, attempts."""

from __future__ import annotations

import asyncio

import pytest
import redis

from cynosure.contract import JobError, JobStatus, Priority, ResolvedRequest
from cynosure.errors import QueueFull
from jobs.queue.gateway import JobStore
from jobs.queue.pace import Pace, outlook_of
from jobs.queue.record import EVERYONE, Beat, Finished, NoClaim, Outcome, new_job_id
from jobs.queue.worker import WorkerStore
from jobs.settings import StoreSettings
from tests.conftest import accept, take

pytestmark = pytest.mark.anyio
MODEL = "fashion"
MADE = Finished(pictures=(b"\x89PNG",), reproducible=True, digests=("d",))
FULL = JobError(code="out_of_memory", message="out of memory")


def test_an_id_is_no_option_of_a_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(["--XYWgv2B4d2aJZtOu2A4A", "-a", "b-"])
    monkeypatch.setattr("jobs.queue.record.secrets.token_urlsafe", lambda size: next(drawn))
    assert new_job_id() == "b-"


async def test_keys_take_turns_by_the_work_they_ask_for(
    store: JobStore, worker_store: WorkerStore, request_: ResolvedRequest
) -> None:
    greedy = [await accept(store, request_, "greedy") for _ in range(6)]
    modest = [await accept(store, request_, "modest") for _ in range(2)]
    heavy = [await accept(store, request_, "heavy", steps=40) for _ in range(2)]
    order = [take(worker_store).job_id for _ in range(10)]
    assert order[:3] == [greedy[0], modest[0], heavy[0]], "everyone's first, as they came"
    assert set(order[3:5]) == {greedy[1], modest[1]}
    assert order.index(heavy[1]) > order.index(greedy[3]), "40 evaluations are worth four jobs of 10"
    assert [job for job in order if job in greedy] == greedy, "one's own jobs stay in order"


async def test_someone_who_waits_for_nothing_is_served_before_a_long_queue(
    store: JobStore, worker_store: WorkerStore, request_: ResolvedRequest
) -> None:
    for _ in range(20):
        await accept(store, request_, "greedy")
    for _ in range(5):
        take(worker_store)
    newcomer = await accept(store, request_, "newcomer")
    assert newcomer in [take(worker_store).job_id for _ in range(2)]


async def test_who_has_one_job_at_a_time_pays_for_it_as_well(
    store: JobStore, worker_store: WorkerStore, request_: ResolvedRequest
) -> None:
    """Another post follows each job of 100, and one that is cancelled buys no place: a queue of tens has its share."""
    for _ in range(40):
        await accept(store, request_, "queue")
    served: list[str] = []
    for _ in range(3):
        job_id = await accept(store, request_, "single", steps=100)
        served.append("")
        while (claim := take(worker_store)).job_id != job_id:
            served[-1] += "."
        await store.cancel(await accept(store, request_, "single", steps=5000), EVERYONE)
    assert [len(between) for between in served][1:] == pytest.approx([10, 10], abs=1)
    assert claim.owner == "single"


async def test_a_cancelled_queue_costs_no_turn_whatever_waits_elsewhere(
    store: JobStore, worker_store: WorkerStore, request_: ResolvedRequest
) -> None:
    """Of another model, or of another priority."""
    elsewhere = request_.model_copy(update={"model": "digits"})
    for _ in range(4):
        await accept(store, request_, "queue")
    for other, priority in ((elsewhere, Priority.NORMAL), (request_, Priority.LOW)):
        await accept(store, other, "single", priority=priority)
    heavy = [await accept(store, request_, "single", steps=5000) for _ in range(2)]
    for job_id in heavy:
        await store.cancel(job_id, EVERYONE)
    await accept(store, request_, "single")
    assert [take(worker_store).owner for _ in range(3)].count("single") == 1


async def test_what_is_left_of_a_queue_keeps_its_turn(
    store: JobStore, worker_store: WorkerStore, request_: ResolvedRequest
) -> None:
    for _ in range(4):
        await accept(store, request_, "queue")
    kept, cancelled = [await accept(store, request_, "single", steps=20) for _ in range(2)]
    await store.cancel(cancelled, EVERYONE)
    later = await accept(store, request_, "single")
    order = [take(worker_store).job_id for _ in range(6)]
    assert order.index(kept) == 1
    assert order.index(later) == 5, "only a queue that is cancelled whole costs nothing"


async def test_a_place_is_as_many_jobs_as_really_start_before(
    store: JobStore, worker_store: WorkerStore, request_: ResolvedRequest
) -> None:
    ids = [await accept(store, request_, owner) for owner in "aaabbc"]
    ids += [await accept(store, request_, "a", priority=priority) for priority in (Priority.HIGH, Priority.LOW)]
    told = {job_id: (await store.look(job_id, EVERYONE)).outlook.queue_position for job_id in ids}
    served = [take(worker_store).job_id for _ in ids]
    assert told == {job_id: served.index(job_id) for job_id in ids}


async def test_a_low_job_that_has_waited_long_goes_before_a_fresh_high_one(
    store: JobStore, store_settings: StoreSettings, request_: ResolvedRequest
) -> None:
    for ageing_s, first in ((1000.0, Priority.HIGH), (0.0, Priority.LOW)):
        settings = store_settings.model_copy(
            update={"priority_ageing_s": ageing_s, "key_prefix": f"{store_settings.key_prefix}-{ageing_s:.0f}"}
        )
        async with JobStore.connect(settings) as deployment:
            for priority in (Priority.LOW, Priority.HIGH):
                await accept(deployment, request_, priority=priority)
        assert take(WorkerStore(settings)).request.priority is first


async def test_a_keys_waiting_jobs_count_whatever_their_priority_and_no_longer_once_they_have_left(
    store_settings: StoreSettings, worker_store: WorkerStore, request_: ResolvedRequest
) -> None:
    async with JobStore.connect(store_settings.model_copy(update={"max_queued_per_key": 2})) as store:
        cancelled = await accept(store, request_, "key", priority=Priority.LOW)
        await accept(store, request_.model_copy(update={"model": "emoji"}), "key")
        for leave in (lambda: store.cancel(cancelled, "key"), lambda: asyncio.to_thread(take, worker_store)):
            with pytest.raises(QueueFull, match="2 of your jobs"):
                await accept(store, request_, "key")
            await leave()
            await accept(store, request_, "key", priority=Priority.HIGH)


async def test_a_key_may_not_fill_the_queue_for_others_and_is_told_when_to_come_again(
    store_settings: StoreSettings, worker_store: WorkerStore, request_: ResolvedRequest
) -> None:
    small = store_settings.model_copy(update={"max_queued_per_key": 2, "max_queued": 4})
    async with JobStore.connect(small) as store:
        for _ in range(2):
            await accept(store, request_, "greedy")
        with pytest.raises(QueueFull, match="2 of your jobs") as refusal:
            await accept(store, request_, "greedy")
        assert refusal.value.retry_after_s == 10, "nothing is measured yet"
        await accept(store, request_, "modest")
        assert worker_store.finish(take(worker_store), MADE)
        await accept(store, request_, "greedy")
        await accept(store, request_, "third")
        with pytest.raises(QueueFull, match="4 jobs are already waiting for 'fashion'") as refusal:
            await accept(store, request_, "third")
        assert refusal.value.retry_after_s == 1, "a job took milliseconds"


def test_times_follow_from_the_pace() -> None:
    pace = Pace(jobs=50.0, work=2500.0, busy_s=25.0, ran_s=100.0)  # two a second; each runs for 2 s beside three others
    assert pace.seconds_for(10) == 5
    assert pace.seconds_for(10**9) == 600
    assert Pace().seconds_for(10) == 10
    assert Pace.of({}) == Pace()


async def test_the_pace_is_measured_and_an_eta_follows(
    store: JobStore,
    worker_store: WorkerStore,
    request_: ResolvedRequest,
    raw: redis.Redis,
    store_settings: StoreSettings,
) -> None:
    done, running, broken, waiting = [await accept(store, request_) for _ in range(4)]
    assert (await store.look(waiting, EVERYONE)).outlook.eta_seconds is None
    claim, second = take(worker_store), take(worker_store)
    started = int(raw.hget(f"{store_settings.key_prefix}:job:{done}", "started_ms"))
    raw.hset(f"{store_settings.key_prefix}:job:{done}", "started_ms", started - 4000)
    assert worker_store.finish(claim, MADE)
    raw.hset(f"{store_settings.key_prefix}:job:{broken}", "started_ms", started - 4000)
    assert worker_store.fail(take(worker_store), FULL)
    pace = Pace.of(raw.hgetall(f"{store_settings.key_prefix}:pace:{MODEL}"))
    assert (pace.jobs, pace.work) == (1, 10)
    assert pace.busy_s == pace.ran_s >= 4
    seen = await store.look(waiting, EVERYONE)
    record, outlook = seen.record, seen.outlook
    assert outlook.queue_position == 0
    assert outlook.eta_seconds == pytest.approx(pace.ran_s)
    behind = outlook_of(record, pace, position=3, now_ms=record.created_ms)
    assert behind.eta_seconds == pytest.approx(4 * pace.ran_s)
    raw.hset(f"{store_settings.key_prefix}:job:{running}", "started_ms", started - 4000)
    worker_store.heartbeat({running: Beat(attempt=second.attempt, evaluations_done=8, evaluations=10)})
    left = (await store.look(running, EVERYONE)).outlook.eta_seconds
    assert left == pytest.approx(1, abs=0.5), "4 s took it through 8 of 10 steps"


async def test_a_fault_that_may_pass_is_tried_again_later_and_told(
    store: JobStore,
    worker_store: WorkerStore,
    request_: ResolvedRequest,
    raw: redis.Redis,
    store_settings: StoreSettings,
) -> None:
    job_id = await accept(store, request_)
    claim = take(worker_store)
    assert worker_store.release(claim, Outcome.FAULTED, FULL)
    record = await store.get(job_id, EVERYONE)
    assert (record.status, record.attempts[0].outcome, record.attempts[0].error) == ("queued", "faulted", FULL)
    assert record.not_before_ms is not None
    assert record.not_before_ms >= record.created_ms + 1000
    assert worker_store.claim(MODEL, "w", held=0) is NoClaim.NOTHING, "not yet"
    assert worker_store.due(MODEL, waiting_s=0) == 0
    raw.zadd(f"{store_settings.key_prefix}:delayed:{MODEL}", {job_id: 1})
    assert worker_store.due(MODEL, waiting_s=0) == 1
    again = take(worker_store)
    assert (again.job_id, again.attempt) == (job_id, 2)
    assert (await store.get(job_id, EVERYONE)).not_before_ms is None


async def test_attempts_run_out_with_the_last_reason(
    store: JobStore, store_settings: StoreSettings, request_: ResolvedRequest, raw: redis.Redis
) -> None:
    job_id = await accept(store, request_)
    twice = WorkerStore(store_settings.model_copy(update={"max_attempts": 2}))
    for _ in range(2):
        raw.zadd(f"{store_settings.key_prefix}:delayed:{MODEL}", {job_id: 1}, xx=True)
        twice.release(take(twice), Outcome.FAULTED, FULL)
    record = await store.get(job_id, EVERYONE)
    assert record.error is not None
    assert (record.status, record.error.code) == (JobStatus.FAILED, "attempts_exhausted")
    assert FULL.message in record.error.message
    assert [attempt.outcome for attempt in record.attempts] == ["faulted", "faulted"]
    assert twice.claim(MODEL, "w", held=0) is NoClaim.NOTHING
