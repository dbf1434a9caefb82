"""What the log says: one line a job's end, whoever ends it, with the request's id; and nothing that a client forges."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from cynosure.contract import JobError, ModelCard, ResolvedRequest
from jobs.logs import ConsoleLines, JsonLines, about, keep, kept, write_to
from jobs.queue.gateway import JobStore
from jobs.queue.record import ANONYMOUS, EVERYONE, Claim, Finished, Outcome
from jobs.queue.worker import WorkerStore
from jobs.settings import StoreSettings
from tests.conftest import accept, bearer, take

FORGED = "GET /\n2026-01-01 00:00:00,000 up INFO all is well\x1b[2J\u2028"
DRAWN = Finished(pictures=(b"one", b"two"), reproducible=True, digests=("0",))


@pytest.fixture(autouse=True)
def every_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def ends(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The lines about jobs' ends."""
    return [vars(record) for record in caplog.records if record.getMessage() == "job ended"]


def logged(formatter: logging.Formatter, message: str, **extra: object) -> str:
    """What a program with this formatter writes."""
    stream, log = io.StringIO(), logging.Logger("x.y")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    log.addHandler(handler)
    try:
        raise ValueError(FORGED)
    except ValueError:
        log.exception(message, extra=extra)
    return stream.getvalue()


def test_a_line_of_text_says_what_it_is_about_and_can_not_be_forged() -> None:
    with about(job="J", request_id=""):
        text = logged(ConsoleLines(), FORGED, waited_s=0.5, key="two words\n", code=None)
    line, *traceback = text.splitlines()
    assert line.endswith(r'up INFO all is well\x1b[2J\u2028 job=J waited_s=0.5 key="two words\n"')
    assert r"x.y ERROR GET /\n2026" in line
    assert traceback[-2:] == ["  ValueError: GET /", "  2026-01-01 00:00:00,000 up INFO all is well\\x1b[2J"]
    assert kept("job") == ""


def test_a_line_of_json_is_an_object_with_the_same() -> None:
    with about(job="J"):
        keep(request_id="R")
        [line] = logged(JsonLines(), FORGED, waited_s=0.5, job="K", code=None).splitlines()
    fields = json.loads(line)
    assert fields.pop("exception").endswith(f"ValueError: {FORGED}")
    assert fields.pop("time").endswith("+00:00")
    about_it = {"job": "K", "request_id": "R", "waited_s": 0.5}
    assert fields == {"level": "ERROR", "logger": "x.y", "message": FORGED, **about_it}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a program writes that logs as JSON."""
    root, hooks, stream = logging.getLogger(), (sys.excepthook, threading.excepthook), io.StringIO()
    level = root.level
    monkeypatch.setattr(root, "handlers", [])
    try:
        write_to(stream, "json")
        yield stream
    finally:
        sys.excepthook, threading.excepthook = hooks
        logging.captureWarnings(False)
        root.setLevel(level)


def test_what_nobody_catches_is_a_line_too(written: io.StringIO) -> None:
    thread = threading.Thread(target=lambda: 1 / 0, name="engine")
    thread.start()
    thread.join()
    sys.excepthook(ValueError, ValueError("x"), None)
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [(line["level"], line["message"]) for line in lines] == [
        ("CRITICAL", "thread engine ended by an error"),
        ("CRITICAL", "ended by an error"),
    ]
    assert lines[0]["exception"].endswith("ZeroDivisionError: division by zero")


async def ended_job(
    how: str, store: JobStore, worker_store: WorkerStore, raw: redis.Redis, prefix: str, request: ResolvedRequest
) -> str:
    job_id = await accept(store, request)
    if how == "cancelled":
        await store.cancel(job_id, EVERYONE)
        await store.cancel(job_id, EVERYONE)
        return job_id
    claim = take(worker_store)
    if how == "succeeded":
        assert worker_store.finish(claim, DRAWN)
        assert not worker_store.fail(Claim(job_id, 7, request, ANONYMOUS), JobError(code="stale", message="late"))
    elif how == "failed":
        assert worker_store.fail(claim, JobError(code="internal", message="secret"))
    elif how == "given back":
        worker_store.release(claim, Outcome.FAULTED, JobError(code="out_of_memory", message="secret"))
    else:
        raw.zadd(f"{prefix}:leases", {job_id: 1})
        worker_store.reclaim(job_id)
    return job_id


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("how", "told"),
    {
        "succeeded": {"status": "succeeded", "attempt": 1, "pictures": 2, "evaluations": 10},
        "failed": {"status": "failed", "code": "internal", "attempt": 1, "pictures": 0, "evaluations": 0},
        "given back": {"status": "failed", "code": "attempts_exhausted", "attempt": 1},
        "lost": {"status": "failed", "code": "attempts_exhausted", "attempt": 1},
        "cancelled": {"status": "cancelled", "code": None, "attempt": 0, "drew_s": 0.0},
    }.items(),
)
async def test_a_jobs_end_is_told_in_one_line_whoever_ends_it(
    how: str,
    told: dict[str, object],
    store_settings: StoreSettings,
    raw: redis.Redis,
    request_: ResolvedRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = store_settings.model_copy(update={"max_attempts": 1})
    async with JobStore.connect(settings) as store:
        job_id = await ended_job(how, store, WorkerStore(settings), raw, settings.key_prefix, request_)
    [line] = ends(caplog)
    assert told.items() <= line.items()
    assert (line["job"], line["model"], line["key"], line["levelname"]) == (job_id, "fashion", None, "INFO")
    assert line["waited_s"] >= 0
    assert line["drew_s"] >= 0
    assert "secret" not in caplog.text


def test_a_line_and_the_answer_have_the_id_of_the_request_and_the_name_of_its_key(
    open_gateway: Callable[..., TestClient],
    worker_store: WorkerStore,
    make_key: Callable[..., str],
    card: ModelCard,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gateway, headers = open_gateway(), bearer(make_key())
    body = {"class_label": 1, "seed": 1, "num_images": 2}
    sent = gateway.post("/generate", json=body, headers={**headers, "X-Request-Id": "Root=1-67/a:b@c"})
    assert sent.headers["X-Request-Id"] == "Root=1-67/a:b@c"
    claim = take(worker_store)
    assert (claim.origin.request_id, claim.origin.key) == ("Root=1-67/a:b@c", "test")
    worker_store.finish(claim, replace(DRAWN, digests=(card.drawn_by,)))
    again = gateway.post("/generate", json=body, headers=headers)
    drawn, cached = ends(caplog)
    assert (drawn["request_id"], drawn["key"]) == ("Root=1-67/a:b@c", "test")
    assert (cached["request_id"], cached["job"]) == (again.headers["X-Request-Id"], again.json()["id"])
    assert (cached["cached"], cached["evaluations"], cached["pictures"]) == (True, 0, 2)


@pytest.mark.parametrize("sent", ["", "two words", "x" * 129, 'a"b', "ü"])
def test_an_id_that_is_not_sane_is_replaced(open_gateway: Callable[..., TestClient], sent: str) -> None:
    answer = open_gateway(auth="off").get("/jobs/none", headers={"X-Request-Id": sent.encode()})
    given = answer.headers["X-Request-Id"]
    assert len(given) == 16
    assert answer.json()["request_id"] == given


def test_an_unexpected_error_has_the_id_in_its_answer_and_in_the_log(
    open_gateway: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = open_gateway(auth="off")
    monkeypatch.setattr(JobStore, "look", None)
    caplog.handler.setFormatter(JsonLines())
    answer = gateway.get("/jobs/none", headers={"X-Request-Id": "mine"})
    [error] = [line for line in map(json.loads, caplog.text.splitlines()) if line["level"] == "ERROR"]
    assert (error["request_id"], error["exception"][:9]) == ("mine", "Traceback")
    assert (answer.status_code, answer.json()["request_id"], answer.headers["X-Request-Id"]) == (500, "mine", "mine")


@pytest.mark.parametrize("is_wanted", [False, True])
def test_requests_are_logged_if_wanted_and_never_their_query(
    open_gateway: Callable[..., TestClient], caplog: pytest.LogCaptureFixture, is_wanted: bool
) -> None:
    open_gateway(auth="off", access_log=is_wanted).get("/jobs/a?signature=secret")
    lines = [vars(record) for record in caplog.records if record.name == "app.access"]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [("GET", "/jobs/a", 422)] * is_wanted
    assert not any("secret" in str(line) for line in lines)
