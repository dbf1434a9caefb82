"""Calls that are repeated, stores that were away, clocks that were put back, keys that must expire."""

from __future__ import annotations

import pytest
import redis

from cynosure.contract import JobError, JobStatus, Priority, ResolvedRequest
from jobs.queue.doorbell import Doorbell
from jobs.queue.gateway import JobStore
from jobs.queue.record import EVERYONE, Beat, Finished, Happening, Outcome, new_job_id
from jobs.queue.worker import WorkerStore
from jobs.settings import StoreSettings
from tests.conftest import accept, take
from workers.upkeep.reaper import Reaper

pytestmark = pytest.mark.anyio
MODEL = "fashion"
MADE = Finished(pictures=(b"\x89PNG",), reproducible=True, digests=("d",))
FULL = JobError(code="out_of_memory", message="out of memory")


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
