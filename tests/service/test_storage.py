"""Pictures in S3, with a real server: whose they are, what answers give out, and what happens when it is away."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import obstore
import pytest
import redis
from fastapi.testclient import TestClient

from app.gateway.settings import GatewaySettings
from app.main import create_app
from chaos.proxy import Proxy
from cynosure.contract import GenerateRequest, JobStatus, ModelCard, ResolvedRequest
from cynosure.programs import program
from cynosure.resolving import resolve, result_key
from harness.processes import clean_environment, free_port, wait_until
from harness.s3 import SECRET, S3Server
from jobs.pictures.opening import check_pictures
from jobs.queue.doorbell import Doorbell
from jobs.queue.gateway import Accepted, JobStore
from jobs.queue.record import ANONYMOUS, Claim, Finished, Submission, new_job_id
from jobs.queue.worker import WorkerStore
from jobs.settings import StoreSettings
from jobs.starting import InvalidSettings
from jobs.store.keyspace import Keys
from models.engine import Engine
from tests.conftest import accept, take
from workers.host import EngineHost

pytestmark = pytest.mark.anyio
LARGE = os.urandom(1_000_000)
MADE = Finished(pictures=(b"\x89PNG one", LARGE), sheet=b"\x89PNG sheet", reproducible=True, digests=("d",))
TAG = f'"{hashlib.sha256(LARGE).hexdigest()}"'
LATE = replace(MADE, pictures=(b"\x89PNG too", b"\x89PNG late"))


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def in_store(store_settings: StoreSettings) -> StoreSettings:
    """The same deployment, before its pictures went to S3."""
    return store_settings.model_copy(update={"pictures": None, "pictures_redirect": False})


@pytest.fixture
def store_settings(store_settings: StoreSettings, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> StoreSettings:
    for name, value in s3.settings.items():
        monkeypatch.setenv(name, value)
    return store_settings.model_copy(update={"pictures": s3.settings["CYNOSURE_PICTURES"]})


@pytest.fixture
def request_(card: ModelCard) -> ResolvedRequest:
    return resolve(GenerateRequest(class_label=1, seed=3, num_images=2), card, seed=0)


@pytest.fixture
def keys(store_settings: StoreSettings) -> Keys:
    return Keys(store_settings.key_prefix)


async def drawn(store: JobStore, worker: WorkerStore, request: ResolvedRequest, made: Finished = MADE) -> str:
    job_id = await accept(store, request)
    assert worker.finish(take(worker), made)
    return job_id


async def lost_once(
    store: JobStore, worker: WorkerStore, raw: redis.Redis, keys: Keys, request: ResolvedRequest
) -> tuple[Claim, Claim]:
    """A job's claims, of which the first was lost."""
    job_id = await accept(store, request)
    late = take(worker)
    raw.zadd(keys.leases, {job_id: 1})
    worker.reclaim(job_id)
    return late, take(worker)


def objects(s3: S3Server, job_id: str) -> list[str]:
    """The objects of a job: attempt and name."""
    return [key.partition(f"{job_id}/")[2] for key in s3.objects(f"of/tests/{job_id}")]


async def test_the_record_holds_keys_and_the_bucket_the_pictures(
    store: JobStore, worker_store: WorkerStore, s3: S3Server, raw: redis.Redis, keys: Keys, request_: ResolvedRequest
) -> None:
    job_id = await drawn(store, worker_store, request_)
    assert objects(s3, job_id) == ["1/0.png", "1/1.png", "1/sheet.png"]
    assert await store.images(job_id, ANONYMOUS) == list(MADE.pictures)
    assert await store.image(job_id, 1, ANONYMOUS) == LARGE
    assert await (await store.sheet(job_id, ANONYMOUS)).read() == MADE.sheet
    assert raw.memory_usage(keys.images(job_id)) + raw.memory_usage(keys.job(job_id)) < len(LARGE) / 100


@pytest.mark.parametrize("late_is_first", [True, False])
async def test_a_late_attempt_leaves_the_winners_pictures_alone_and_none_of_its_own(
    late_is_first: bool,
    store: JobStore,
    worker_store: WorkerStore,
    s3: S3Server,
    raw: redis.Redis,
    keys: Keys,
    request_: ResolvedRequest,
) -> None:
    late, claim = await lost_once(store, worker_store, raw, keys, request_)
    ends = [lambda: not worker_store.finish(late, LATE), lambda: worker_store.finish(claim, MADE)]
    assert all(end() for end in (ends if late_is_first else reversed(ends)))
    assert await store.images(claim.job_id, ANONYMOUS) == list(MADE.pictures)
    assert objects(s3, claim.job_id) == ["2/0.png", "2/1.png", "2/sheet.png"]


async def test_erased_jobs_leave_no_object_and_not_those_of_lost_attempts_either(
    store: JobStore, worker_store: WorkerStore, s3: S3Server, raw: redis.Redis, keys: Keys, request_: ResolvedRequest
) -> None:
    late, claim = await lost_once(store, worker_store, raw, keys, request_)
    worker_store.keep(late, LATE)  # and then its worker died
    assert worker_store.finish(claim, MADE)
    assert len(objects(s3, claim.job_id)) == 6
    await store.erase(claim.job_id, ANONYMOUS)
    assert objects(s3, claim.job_id) == []


async def test_a_cached_result_has_copies_of_its_own_and_is_drawn_again_if_there_is_nothing_to_copy(
    store: JobStore, worker_store: WorkerStore, s3: S3Server, in_store: StoreSettings, request_: ResolvedRequest
) -> None:
    key = result_key(request_.model_dump(mode="json"), "d")

    async def ask(of: JobStore = store) -> Accepted:
        submission = Submission.of(request_, cached_as=key)
        return await of.accept(new_job_id(), submission, owner=ANONYMOUS, evaluations=100)

    first = await ask()
    assert first.waits
    assert worker_store.finish(take(worker_store), MADE)
    second = await ask()
    assert second.is_cached
    assert objects(s3, second.id) == ["0/0.png", "0/1.png", "0/sheet.png"]
    await store.erase(first.id, ANONYMOUS)
    assert await store.images(second.id, ANONYMOUS) == list(MADE.pictures)

    assert (await ask()).waits, "the erased job is no result any more"
    again = take(worker_store)
    assert worker_store.finish(again, MADE)
    obstore.delete(s3.bucket, f"of/tests/{again.job_id}/1/1.png")
    third = await ask()
    assert third.waits, "one of its objects is gone"
    assert objects(s3, third.id) == []
    assert WorkerStore(in_store).finish(take(worker_store), MADE)
    fourth = await ask()
    assert fourth.is_cached, "pictures in the store need no copies"
    assert await store.images(fourth.id, ANONYMOUS) == list(MADE.pictures)
    async with JobStore.connect(in_store) as before:
        assert worker_store.finish(await accepted_again(before, worker_store, request_), MADE)
        assert (await ask(before)).waits, "it can't copy what lies in S3"


async def accepted_again(store: JobStore, worker: WorkerStore, request: ResolvedRequest) -> Claim:
    await accept(store, request)
    return take(worker)


@pytest.fixture
def gateway(store_settings: StoreSettings) -> Iterator[Callable[..., TestClient]]:
    """Gateways of this process, with changed settings of the store."""
    with ExitStack() as opened:

        def one(**changes: object) -> TestClient:
            app = create_app(GatewaySettings(auth="off"), store_settings.model_copy(update=changes))
            return opened.enter_context(TestClient(app, "http://127.0.0.1", raise_server_exceptions=False))

        yield one


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("images/1.png", {}, 200),
        ("images/1.png", {"If-None-Match": TAG}, 304),
        ("images/1.png", {"Range": "bytes=10-99"}, 206),
        ("images/1.png", {"Range": "bytes=-5"}, 206),
        ("images/1.png", {"Range": "bytes=10-99", "If-Range": '"another"'}, 200),
        ("images/1.png", {"Range": "bytes=1000000-"}, 416),
        ("images/2.png", {}, 404),
        ("sheet.png", {}, 200),
    ],
)
async def test_answers_are_those_of_pictures_in_the_store(
    path: str,
    headers: dict[str, str],
    status: int,
    store: JobStore,
    worker_store: WorkerStore,
    in_store: StoreSettings,
    request_: ResolvedRequest,
    gateway: Callable[..., TestClient],
) -> None:
    client, told = gateway(), ("etag", "content-length", "content-range", "content-type", "cache-control")
    jobs = [await drawn(store, worker, request_) for worker in (worker_store, WorkerStore(in_store))]
    for method in ("GET", "HEAD"):
        answers = [client.request(method, f"/jobs/{job_id}/{path}", headers=headers) for job_id in jobs]
        ours, before = ([answer.headers.get(name) for name in told] for answer in answers)
        assert ours == before
        assert answers[0].content.replace(jobs[0].encode(), jobs[1].encode())[:9] == answers[1].content[:9]
        if method == "GET":
            assert answers[0].status_code == answers[1].status_code == status
            assert len(answers[0].content) == len(answers[1].content)


async def test_clients_are_redirected_to_a_signed_address(
    store: JobStore,
    worker_store: WorkerStore,
    s3: S3Server,
    request_: ResolvedRequest,
    gateway: Callable[..., TestClient],
) -> None:
    client = gateway(pictures_redirect=True)
    path = f"/jobs/{await drawn(store, worker_store, request_)}"
    answer = client.get(f"{path}/images/1.png", follow_redirects=False)
    assert (answer.status_code, answer.headers["cache-control"]) == (302, "no-store")
    assert answer.headers["location"].startswith(f"{s3.url}/pictures/of/tests/")
    assert httpx.get(answer.headers["location"]).content == LARGE
    assert httpx.get(answer.headers["location"].partition("?")[0]).status_code == 403
    assert client.get(f"{path}/sheet.png", follow_redirects=False).status_code == 302
    assert client.get(f"{path}/images/1.png", headers={"If-None-Match": TAG}).status_code == 304
    assert client.head(f"{path}/images/1.png", follow_redirects=False).headers["content-length"] == str(len(LARGE))
    for page in ("/", "/docs"):
        policy = client.get(page, headers={"Accept": "text/html"}).headers["content-security-policy"]
        assert re.search(f"connect-src 'self' {s3.url}[ ;]", policy)
    elsewhere = gateway(pictures_redirect=True, pictures_endpoint="https://s3.example.org")
    there = elsewhere.get(f"{path}/images/1.png", follow_redirects=False).headers["location"]
    assert there.startswith("https://s3.example.org/pictures/of/tests/")
    assert client.get(f"{path}/images/1.png?redirect=false", follow_redirects=False).content == LARGE


async def test_a_missing_object_is_an_expired_picture(
    store: JobStore,
    worker_store: WorkerStore,
    s3: S3Server,
    request_: ResolvedRequest,
    gateway: Callable[..., TestClient],
) -> None:
    job_id = await drawn(store, worker_store, request_)
    obstore.delete(s3.bucket, s3.objects(f"of/tests/{job_id}"))
    answer = gateway().get(f"/jobs/{job_id}/images/0.png")
    assert (answer.status_code, answer.json()["code"]) == (410, "job_expired")
    assert await store.images(job_id, ANONYMOUS) == []


async def test_a_gateway_that_gets_no_answer_or_knows_no_bucket_says_so(
    store: JobStore,
    worker_store: WorkerStore,
    request_: ResolvedRequest,
    gateway: Callable[..., TestClient],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = await drawn(store, worker_store, request_)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    for client in (gateway(), gateway(pictures=None)):
        refused = client.get(f"/jobs/{job_id}/images/0.png")
        assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
        assert int(refused.headers["retry-after"]) > 0
        assert client.get(f"/jobs/{job_id}").status_code == 200
    assert gateway().delete(f"/jobs/{job_id}?erase=true").status_code == 503
    assert (await store.get(job_id, ANONYMOUS)).status is JobStatus.SUCCEEDED, "what can't be erased is not forgotten"


@pytest.fixture
def host(
    small_pack: Path, store_settings: StoreSettings, s3: S3Server, doorbell: Doorbell, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[EngineHost, Proxy]]:
    """A worker that reaches S3 through a proxy."""
    with Proxy(urlsplit(s3.url).port or 0) as proxy, Engine([str(small_pack)]) as engine:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        worker = WorkerStore(store_settings)
        yield EngineHost(engine, worker, doorbell, worker_name="w", slots=4, heartbeat_s=1, job_timeout_s=60), proxy


async def test_a_worker_keeps_what_it_has_drawn_until_the_storage_is_back(
    store: JobStore, host: tuple[EngineHost, Proxy], caplog: pytest.LogCaptureFixture
) -> None:
    worker, proxy = host
    asked = resolve(GenerateRequest(class_label=1, steps=3, use_cache=False), worker.cards["fashion"], seed=1)
    kept, cancelled = [await accept(store, asked) for _ in range(2)]
    proxy.weather.closed = True
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(worker.run, "fashion") for _ in range(2)]
        wait_until(lambda: caplog.text.count("failed to put") >= 2, what="both found the storage away")
        assert (await store.get(kept, ANONYMOUS)).status is JobStatus.RUNNING
        await store.cancel(cancelled, ANONYMOUS)
        worker.leases._turn()  # the heartbeat, which hears of it
        assert len(wait(running, timeout=60, return_when=FIRST_COMPLETED).done) == 1, "it waits for no storage"
        proxy.weather.closed = False
        for one in running:
            one.result(timeout=60)
    done = await store.get(kept, ANONYMOUS)
    assert [attempt.outcome for attempt in done.attempts] == ["succeeded"], "nothing is drawn twice"
    assert await store.image(kept, 0, ANONYMOUS)
    assert (await store.get(cancelled, ANONYMOUS)).status is JobStatus.CANCELLED
    assert SECRET not in caplog.text
    told = worker._store.metrics.registry.get_sample_value
    failures = told("cynosure_picture_storage_failures_total", {"operation": "put"})
    assert failures
    assert told("cynosure_picture_storage_seconds_count", {"operation": "put"}) == failures + 1


async def test_a_worker_that_must_stop_gives_back_what_it_could_not_store(
    store: JobStore, host: tuple[EngineHost, Proxy], caplog: pytest.LogCaptureFixture
) -> None:
    worker, proxy = host
    asked = resolve(GenerateRequest(class_label=1, steps=3), worker.cards["fashion"], seed=1)
    job_id = await accept(store, asked)
    proxy.weather.closed = True
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(worker.run, "fashion")
        wait_until(lambda: "failed to put" in caplog.text, what="it found the storage away")
        worker.hand_back_all()
        running.result(timeout=60)
    back = await store.get(job_id, ANONYMOUS)
    assert (back.status, [attempt.outcome for attempt in back.attempts]) == (JobStatus.QUEUED, ["handed_back"])


OF_TESTS = "CYNOSURE_PICTURES='s3://pictures/of/tests': "
WRONG = {
    "bucket": ({"CYNOSURE_PICTURES": "s3://nowhere"}, "CYNOSURE_PICTURES='s3://nowhere': there is no bucket 'nowhere'"),
    "secret": ({"AWS_SECRET_ACCESS_KEY": "s3cret"}, f"{OF_TESTS}the storage refuses these credentials"),
    "user": ({"AWS_ACCESS_KEY_ID": "nobody"}, f"{OF_TESTS}the storage refuses these credentials"),
    "endpoint": ({"AWS_ENDPOINT_URL": "s3.example.org"}, "AWS_ENDPOINT_URL='s3.example.org': write an address"),
    "option": ({"AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "maybe"}, f'{OF_TESTS}a variable AWS_… is wrong: .* "maybe"'),
}


@pytest.mark.parametrize("what", WRONG)
async def test_a_wrong_bucket_or_wrong_credentials_are_refused_at_the_start(
    what: str, store_settings: StoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables, says = WRONG[what]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    pictures = variables.get("CYNOSURE_PICTURES", store_settings.pictures)
    with pytest.raises(InvalidSettings, match=f"^{says}") as refusal:
        check_pictures(store_settings.model_copy(update={"pictures": pictures}))
    assert "\n" not in str(refusal.value)
    assert "s3cret" not in str(refusal.value)


async def test_a_storage_that_is_away_holds_up_no_start(
    store_settings: StoreSettings, s3: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    check_pictures(store_settings)
    assert not caplog.text
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    check_pictures(store_settings)
    assert "does not answer" in caplog.text
    assert not [key for key in s3.objects() if "check" in key]


@pytest.mark.parametrize("program_", ["app", "workers"])
async def test_both_programs_end_as_for_a_wrong_setting(program_: str, s3: S3Server, small_pack: Path) -> None:
    wrong = {**s3.settings, "CYNOSURE_PICTURES": "s3://no-such-bucket", "CYNOSURE_WORKER_MODELS": str(small_pack)}
    options = ["--port", str(free_port())] if program_ == "app" else []
    environment = clean_environment(**wrong)
    ended = subprocess.run(program(program_, *options), env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == os.EX_CONFIG
    [line] = ended.stderr.splitlines()
    assert "CYNOSURE_PICTURES='s3://no-such-bucket'" in line
