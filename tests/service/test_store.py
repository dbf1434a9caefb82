"""The record's transitions against a real Valkey: who may move what, and what a late or duplicate worker can't."""

from __future__ import annotations

import asyncio
import json

import pytest
import redis

from cynosure.contract import GenerateRequest, JobError, JobStatus, ModelCard, Priority, ResolvedRequest
from cynosure.errors import (
    IdempotencyConflict,
    ImageNotFound,
    JobExpired,
    JobNotFound,
    QueueFull,
    StoreUnavailable,
)
from cynosure.resolving import resolve, result_key
from jobs.gateway import Store
from jobs.queue.doorbell import Doorbell
from jobs.queue.events import JobNews
from jobs.queue.gateway import JobStore
from jobs.queue.pace import Outlook
from jobs.queue.record import ANONYMOUS, Beat, Finished, Happening, NoClaim, Outcome, Submission, Verdict, new_job_id
from jobs.queue.worker import WorkerStore
from jobs.settings import StoreSettings
from jobs.store.connection import CONNECTIONS, connect
from jobs.store.keyspace import Keys
from jobs.store.scripts import MAX_EVENTS
from tests.conftest import accept, take
from workers.upkeep.reaper import Reaper

pytestmark = pytest.mark.anyio
MADE = Finished(pictures=(b"\x89PNG one", b"\x89PNG two"), reproducible=True, digests=("d",))


@pytest.fixture
def keys(store_settings: StoreSettings) -> Keys:
    return Keys(store_settings.key_prefix)


@pytest.fixture
def request_(card: ModelCard) -> ResolvedRequest:
    return resolve(GenerateRequest(class_label=1, seed=3, num_images=2), card, seed=0)


def with_settings(settings: StoreSettings, **changes: object) -> StoreSettings:
    return settings.model_copy(update=changes)


def of_a_newer_version(request: ResolvedRequest) -> str:
    """As a gateway writes it whose contract has one more field."""
    return json.dumps({**request.model_dump(mode="json"), "a_new_field": "secret"})


async def test_a_job_goes_from_queued_over_running_to_succeeded(
    store: JobStore, worker_store: WorkerStore, request_: ResolvedRequest
) -> None:
    job_id = await accept(store, request_)
    queued = await store.get(job_id, ANONYMOUS)
    assert (queued.status, queued.attempt, queued.started_ms) == (JobStatus.QUEUED, 0, None)
    assert (await store.look(job_id, ANONYMOUS)).outlook.queue_position == 0

    claim = take(worker_store, worker="w1")
    running = await store.get(job_id, ANONYMOUS)
    assert (running.status, running.attempt) == (JobStatus.RUNNING, 1)
    assert (await store.look(job_id, ANONYMOUS)).outlook.queue_position is None

    assert worker_store.heartbeat({job_id: Beat(attempt=claim.attempt, evaluations_done=40, evaluations=100)}) == {
        job_id: Verdict.OK
    }
    assert (await store.get(job_id, ANONYMOUS)).progress == 0.4
    with pytest.raises(ImageNotFound):
        await store.image(job_id, 0, ANONYMOUS)

    assert worker_store.finish(claim, MADE)
    done = await store.get(job_id, ANONYMOUS)
    assert (done.status, done.progress) == (JobStatus.SUCCEEDED, 1.0)
    assert [await store.image(job_id, i, ANONYMOUS) for i in range(2)] == list(MADE.pictures)
    assert done.image_hashes == tuple(MADE.hashes)


async def test_only_one_of_two_workers_gets_a_job(
    store: JobStore, worker_store: WorkerStore, request_: ResolvedRequest
) -> None:
    await accept(store, request_)
    take(worker_store, worker="w1")
    assert worker_store.claim("fashion", "w2", held=0) is NoClaim.NOTHING


async def test_a_silent_workers_job_goes_back_and_its_late_writes_are_refused(
    store: JobStore, worker_store: WorkerStore, request_: ResolvedRequest, raw: redis.Redis, keys: Keys
) -> None:
    job_id = await accept(store, request_)
    lost = take(worker_store, worker="w1")
    assert worker_store.reclaim(job_id)[0] == "kept", "the lease still runs"
    raw.zadd(keys.leases, {job_id: 1})
    assert worker_store.expired_leases() == [job_id]
    assert worker_store.reclaim(job_id)[0] == "queued"

    again = take(worker_store, worker="w2")
    assert again.attempt == 2
    assert worker_store.heartbeat({job_id: Beat(attempt=lost.attempt, evaluations_done=99, evaluations=100)}) == {
        job_id: Verdict.STALE
    }
    assert not worker_store.finish(lost, MADE)
    assert not worker_store.fail(lost, JobError(code="internal", message="late"))
    assert not worker_store.release(lost, Outcome.HANDED_BACK)
    assert (await store.get(job_id, ANONYMOUS)).status is JobStatus.RUNNING
    assert worker_store.finish(again, MADE)
    assert not worker_store.finish(again, Finished(pictures=(b"other", b"bytes"), reproducible=True, digests=("d",))), (
        "a finished job is finished"
    )
    assert await store.image(job_id, 0, ANONYMOUS) == MADE.pictures[0]


async def test_a_job_that_loses_every_worker_fails(
    store: JobStore, store_settings: StoreSettings, request_: ResolvedRequest, raw: redis.Redis, keys: Keys
) -> None:
    twice = WorkerStore(with_settings(store_settings, max_attempts=2))
    job_id = await accept(store, request_)
    outcomes = []
    for _ in range(2):
        take(twice)
        raw.zadd(keys.leases, {job_id: 1})
        outcomes.append(twice.reclaim(job_id)[0])
    assert outcomes == ["queued", "failed"]
    failed = await store.get(job_id, ANONYMOUS)
    assert failed.error is not None
    assert (failed.status, failed.error.code) == (JobStatus.FAILED, "attempts_exhausted")


async def test_handing_back_in_good_order_costs_no_attempt(
    store: JobStore, store_settings: StoreSettings, request_: ResolvedRequest
) -> None:
    patient = WorkerStore(with_settings(store_settings, max_attempts=1))
    job_id = await accept(store, request_)
    for _ in range(3):
        claim = take(patient)
        assert patient.release(claim, Outcome.HANDED_BACK)
    assert (await store.get(job_id, ANONYMOUS)).status is JobStatus.QUEUED


async def test_a_cancelled_job_can_neither_be_claimed_nor_finished(
    store: JobStore, worker_store: WorkerStore, request_: ResolvedRequest
) -> None:
    running, waiting = await accept(store, request_), await accept(store, request_)
    claim = take(worker_store)
    for job_id in (waiting, running):
        assert (await store.cancel(job_id, ANONYMOUS)).status is JobStatus.CANCELLED
    assert worker_store.claim("fashion", "w", held=0) is NoClaim.NOTHING
    assert worker_store.heartbeat({running: Beat(attempt=claim.attempt, evaluations_done=1, evaluations=100)}) == {
        running: Verdict.CANCELLED
    }
    assert not worker_store.finish(claim, MADE)
    assert (await store.get(running, ANONYMOUS)).status is JobStatus.CANCELLED


async def test_cancelling_a_finished_job_changes_nothing(
    store: JobStore, worker_store: WorkerStore, request_: ResolvedRequest
) -> None:
    job_id = await accept(store, request_)
    claim = take(worker_store)
    assert worker_store.finish(claim, MADE)
    assert (await store.cancel(job_id, ANONYMOUS)).status is JobStatus.SUCCEEDED


async def test_a_key_makes_one_job_and_refuses_another_request(store: JobStore, request_: ResolvedRequest) -> None:
    first = await accept(store, request_, key="k", fingerprint="a")
    assert await accept(store, request_, key="k", fingerprint="a") == first
    with pytest.raises(IdempotencyConflict):
        await accept(store, request_, key="k", fingerprint="b")


async def test_what_was_drawn_before_is_answered_at_once(
    store: JobStore, worker_store: WorkerStore, request_: ResolvedRequest
) -> None:
    async def ask(owner: str = ANONYMOUS) -> tuple[str, bool]:
        key = result_key(request_.model_dump(mode="json"), *MADE.digests)
        submission = Submission.of(request_, cached_as=key)
        accepted = await store.accept(new_job_id(), submission, owner=owner, evaluations=100)
        return accepted.id, accepted.waits

    _, waits = await ask()
    assert waits
    assert (await ask())[1], "not drawn yet: this one waits too"
    claim = take(worker_store)
    assert worker_store.finish(claim, MADE)
    again, waits = await ask()
    assert not waits
    answered = await store.get(again, ANONYMOUS)
    assert (answered.status, answered.cached, answered.image_hashes) == ("succeeded", True, tuple(MADE.hashes))
    assert (await ask("another"))[1], "that it was drawn for one is nothing that another may learn"
    assert await store.image(again, 1, ANONYMOUS) == MADE.pictures[1]
    shown, less_urgent, shorter = (
        request_.model_copy(update=changes).model_dump(mode="json")
        for changes in ({}, {"priority": Priority.LOW}, {"steps": 7})
    )
    assert result_key(shorter, *MADE.digests) != result_key(shown, *MADE.digests) != result_key(shown, "other weights")
    assert len({result_key(shown, *digests) for digests in (("d",), ("d", "g"), ("g", "d"))}) == 3, "a guide counts"
    assert result_key(less_urgent, "d") == result_key(shown, "d")


async def test_a_full_queue_refuses_with_a_time_to_retry(
    store_settings: StoreSettings, request_: ResolvedRequest
) -> None:
    async with JobStore.connect(with_settings(store_settings, max_queued=2)) as small:
        for _ in range(2):
            await accept(small, request_)
        with pytest.raises(QueueFull) as refusal:
            await accept(small, request_)
    assert refusal.value.retry_after_s


async def test_more_calls_at_once_than_connections_wait_for_each_other(
    store: JobStore, request_: ResolvedRequest
) -> None:
    accepted = await asyncio.gather(*(accept(store, request_) for _ in range(3 * CONNECTIONS)))
    assert len(set(accepted)) == 3 * CONNECTIONS


async def test_a_workers_threads_wait_for_a_connection_too(store_settings: StoreSettings) -> None:
    client = connect(store_settings, "test")
    taken = [client.connection_pool.get_connection() for _ in range(CONNECTIONS)]
    waiting = asyncio.create_task(asyncio.to_thread(client.ping))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    for connection in taken:
        client.connection_pool.release(connection)
    assert await waiting
    client.close()


async def test_calls_of_one_moment_share_a_trip_and_fail_alone(
    store: JobStore, request_: ResolvedRequest, raw: redis.Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, trips, pipeline = await accept(store, request_), 0, store._client.pipeline

    def counted(transaction: bool) -> object:
        nonlocal trips
        trips += 1
        return pipeline(transaction=transaction)

    raw.set(keys.job("broken"), "no hash")
    raw.script_flush()
    monkeypatch.setattr(store._client, "pipeline", counted)
    looks = [store.look(one, ANONYMOUS) for one in (job_id, "broken", *["unknown"] * 40)]
    seen, broken, *unknown = await asyncio.gather(*looks, return_exceptions=True)
    assert getattr(seen, "outlook", seen) == Outlook(queue_position=0)
    assert isinstance(broken, StoreUnavailable)
    assert {type(one) for one in unknown} == {JobNotFound}
    assert trips == 3, "one that finds no script there, one that brings it, and one"


async def test_higher_priorities_are_ahead_in_the_queue(store: JobStore, request_: ResolvedRequest) -> None:
    ids = {
        priority: await accept(store, request_.model_copy(update={"priority": priority}))
        for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH)
    }
    positions = {
        priority: (await store.look(job_id, ANONYMOUS)).outlook.queue_position for priority, job_id in ids.items()
    }
    assert positions == {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}


async def test_an_expired_job_is_told_from_an_unknown_one(
    store: JobStore, store_settings: StoreSettings, request_: ResolvedRequest, raw: redis.Redis, keys: Keys
) -> None:
    brief = WorkerStore(with_settings(store_settings, result_ttl_s=60))
    job_id = await accept(store, request_)
    claim = take(brief)
    assert brief.finish(claim, MADE)
    records = (keys.job(job_id), keys.images(job_id))
    assert all(0 < raw.pttl(key) <= 60_000 for key in records)
    raw.delete(*records)
    with pytest.raises(JobExpired):
        await store.get(job_id, ANONYMOUS)
    with pytest.raises(JobExpired):
        await store.image(job_id, 0, ANONYMOUS)
    with pytest.raises(JobNotFound):
        await store.get("never-was", ANONYMOUS)


async def test_the_reaper_rings_for_lost_jobs_and_forgets_expired_entries(
    store: JobStore,
    worker_store: WorkerStore,
    doorbell: Doorbell,
    request_: ResolvedRequest,
    raw: redis.Redis,
    keys: Keys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.upkeep.reaper.BELL_GRACE_S", 0.0)
    reaper = Reaper(worker_store, doorbell, (request_.model,), interval_s=1, grace_after_outage_s=1)
    lost, never_rung = await accept(store, request_), await accept(store, request_)
    take(worker_store)
    raw.zadd(keys.leases, {lost: 1})
    raw.delete(keys.job(await accept(store, request_, priority=Priority.LOW)))
    assert doorbell.pending_bells(request_.model) == 3
    raw.delete(f"{keys.prefix}:bell:cynosure.{request_.model}")
    reaper.look()
    assert (await store.get(lost, ANONYMOUS)).status is JobStatus.QUEUED
    assert doorbell.pending_bells(request_.model) == 3, "as many as there seem to be jobs"
    reaper.look()
    assert doorbell.pending_bells(request_.model) == 3, "they are told of already"
    assert [take(worker_store).job_id for _ in range(2)] == [lost, never_rung]
    assert worker_store.claim("fashion", "w", held=0) is NoClaim.NOTHING, "the third has expired"
    assert worker_store.due(request_.model, waiting_s=0) == 0


async def test_a_record_that_a_worker_can_not_read_holds_up_no_other(
    store: JobStore,
    worker_store: WorkerStore,
    doorbell: Doorbell,
    request_: ResolvedRequest,
    raw: redis.Redis,
    keys: Keys,
) -> None:
    reaper = Reaper(worker_store, doorbell, (request_.model,), interval_s=1, grace_after_outage_s=1)
    newer, broken, plain = [await accept(store, request_) for _ in range(3)]
    for lease, job_id in enumerate((newer, broken, plain), start=1):
        take(worker_store)
        raw.zadd(keys.leases, {job_id: lease})
    raw.hset(keys.job(newer), "request", of_a_newer_version(request_))
    raw.hset(keys.job(broken), "request", "{")
    rung = doorbell.pending_bells(request_.model)
    reaper.look()
    assert [raw.hget(keys.job(job_id), "status") for job_id in (newer, plain)] == [b"queued", b"queued"]
    assert doorbell.pending_bells(request_.model) == rung + 2


async def test_a_request_that_a_worker_can_not_read_is_left_to_others(
    store: JobStore,
    worker_store: WorkerStore,
    request_: ResolvedRequest,
    raw: redis.Redis,
    keys: Keys,
    caplog: pytest.LogCaptureFixture,
) -> None:
    newer, behind = await accept(store, request_), await accept(store, request_)
    raw.hset(keys.job(newer), "request", of_a_newer_version(request_))
    assert worker_store.claim(request_.model, "old", held=0) is NoClaim.NOTHING
    assert newer in [vars(record).get("job") for record in caplog.records]
    assert "a_new_field" in caplog.text
    assert "secret" not in caplog.text
    assert raw.zscore(keys.leases, newer) is None
    assert take(worker_store).job_id == behind, "the other one is put off"
    raw.hset(keys.job(newer), "request", request_.model_dump_json())  # as a worker of the newer version reads it
    raw.zadd(keys.delayed(request_.model), {newer: 1}, xx=True)
    again = take(worker_store, worker="new")
    assert (again.job_id, again.attempt) == (newer, 2)
    told = (await store.get(newer, ANONYMOUS)).attempts[0]
    assert told.error is not None
    assert (told.outcome, told.error.code) == ("faulted", "unreadable_request")


async def test_a_request_that_no_worker_can_read_fails_in_the_end(
    store: JobStore, store_settings: StoreSettings, request_: ResolvedRequest, raw: redis.Redis, keys: Keys
) -> None:
    twice = WorkerStore(with_settings(store_settings, max_attempts=2))
    job_id = await accept(store, request_)
    raw.hset(keys.job(job_id), "request", of_a_newer_version(request_))
    for _ in range(2):
        raw.zadd(keys.delayed(request_.model), {job_id: 1}, xx=True)
        assert twice.claim(request_.model, "old", held=0) is NoClaim.NOTHING
    assert raw.hget(keys.job(job_id), "status") == b"failed"
    assert JobError.model_validate_json(raw.hget(keys.job(job_id), "error") or b"").code == "attempts_exhausted"


async def test_what_happens_to_a_job_can_be_read_again_from_anywhere(
    store: JobStore, worker_store: WorkerStore, request_: ResolvedRequest
) -> None:
    job_id = await accept(store, request_)
    claim = take(worker_store, worker="w1")
    for step in range(1, MAX_EVENTS + 40):
        told = (Happening("progress", f'{{"step": {step}}}'),)
        beat = Beat(attempt=1, evaluations_done=step, evaluations=999, sequence=step, happenings=told)
        worker_store.heartbeat({job_id: beat})
    kept = await store.happenings(job_id, after="0")
    assert len(kept) == MAX_EVENTS, "the oldest went"
    assert await store.happenings(job_id, after=kept[-3].id) == kept[-2:]
    assert worker_store.release(claim, Outcome.HANDED_BACK)
    assert (await store.happenings(job_id, after=kept[-1].id))[0].data == '{"status":"queued","attempt":1}'


async def test_who_waits_looks_again_when_the_subscription_was_cut(
    store_settings: StoreSettings, raw: redis.Redis
) -> None:
    async with JobNews.listen(store_settings) as news, news.of("j") as event:
        for _ in range(2):
            await asyncio.wait_for(event.wait(), 10)  # as it begins to listen, and then as it does again
            event.clear()
            raw.client_kill_filter(_type="pubsub")


async def test_all_of_a_gateways_calls_share_one_pool(store_settings: StoreSettings, raw: redis.Redis) -> None:
    before = {client["id"] for client in raw.client_list()}
    async with Store.connect(store_settings) as opened:
        await asyncio.gather(
            opened.jobs.ping(),
            opened.fleet.cards(),
            opened.batches.running(),
            opened.listing.page(ANONYMOUS, status=None, cursor=None, limit=1),
            opened.api_keys.caller_of("nobody"),
        )
        names = {client["name"] for client in raw.client_list() if client["id"] not in before}
    assert names == {"cynosure-gateway", "cynosure-events"}
