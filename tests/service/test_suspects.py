"""Jobs whose workers were lost twice: they run apart, so that no other job pays for them."""

from __future__ import annotations

import pytest
import redis
from kombu.exceptions import OperationalError

from cynosure.contract import ResolvedRequest
from jobs.queue.doorbell import Doorbell
from jobs.queue.gateway import JobStore
from jobs.queue.record import Finished, NoClaim
from jobs.queue.worker import WorkerStore
from jobs.settings import StoreSettings
from tests.conftest import accept, lose, take
from workers.claims import Claims

pytestmark = pytest.mark.anyio
MODEL = "fashion"
MADE = Finished(pictures=(b"\x89PNG",), reproducible=True, digests=("d",))


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
    rung = doorbell.pending_bells(MODEL)
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
    assert doorbell.pending_bells(MODEL) == rung + 2, "the bells that it could not answer are rung again"


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
    rung = doorbell.pending_bells(MODEL)
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
    assert doorbell.pending_bells(MODEL) == rung
    first.keep_emptying()
    assert first.has_room
    assert doorbell.pending_bells(MODEL) == rung + 1, "the bell that it could not answer is rung again"
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
