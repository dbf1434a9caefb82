"""The clients: their examples as they stand in the docstrings, and what they do when things go wrong."""

from __future__ import annotations

import asyncio
import doctest
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

import cynosure
from cynosure import AsyncClient, Client, GenerateRequest, Job, Progress, Retries
from cynosure.client import asynchronous as async_client
from cynosure.client import blocking as client
from cynosure.client.attempts import Attempts, Server
from cynosure.contract import JobStatus
from cynosure.errors import (
    InvalidRequest,
    JobCancelled,
    JobNotFound,
    NoWorker,
    QueueFull,
    StoreUnavailable,
    UnknownField,
    UnknownLabel,
    Unreachable,
)
from tests.conftest import serving


@pytest.mark.parametrize("module", [client, async_client], ids=["sync", "async"])
def test_the_examples_run(server_url: str, module: Any) -> None:
    with Client(server_url) as opened:
        names = {"url": server_url, "client": opened}
        outcome = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert outcome.attempted > 3
    assert outcome.failed == 0


def test_all_that_is_exported_is_there() -> None:
    assert sorted(cynosure.__all__) == cynosure.__all__
    assert all(hasattr(cynosure, name) for name in cynosure.__all__)


def test_both_clients_have_the_same_methods() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(Client) == public(AsyncClient)


def test_the_same_request_gives_the_same_picture_through_both(server_url: str) -> None:
    request = GenerateRequest(class_label="bag", steps=5, seed=6, use_cache=False)

    async def draw() -> list[bytes]:
        async with AsyncClient(server_url) as asynchronous:
            return [picture.tobytes() for picture in await asynchronous.generate(request)]

    with Client(server_url) as synchronous:
        assert [picture.tobytes() for picture in synchronous.generate(request)] == asyncio.run(draw())
        assert synchronous.generate(request)[0].info["cynosure"]


def test_a_batch_goes_on_past_what_fails(server_url: str) -> None:
    asked: list[Any] = [{"class_label": "bag", "steps": 4}, {"class_label": "sneker"}, {"steps": 0}, {"steps": 4}]
    with Client(server_url) as synchronous:
        drawn = {one.index: one for one in synchronous.batch(asked, concurrency=2)}
    assert [bool(drawn[index].pictures) for index in range(4)] == [True, False, False, True]
    assert isinstance(drawn[1].error, InvalidRequest)
    assert "steps" in str(drawn[2].error)


def test_waiting_tells_what_happens_and_raises_how_it_ended(server_url: str) -> None:
    with Client(server_url) as synchronous:
        told: list[Any] = []
        done = synchronous.wait(synchronous.submit(class_label=1, steps=30).id, on_event=told.append)
        assert done.status is JobStatus.SUCCEEDED
        assert isinstance(told[-1], Job)
        assert all(isinstance(event, (Job, Progress)) for event in told)
        job = synchronous.submit(class_label=1, steps=1000, num_images=8, use_cache=False)
        canceller = threading.Thread(target=lambda: synchronous.cancel(job.id))
        canceller.start()
        with pytest.raises(JobCancelled):
            synchronous.wait(job.id)
        canceller.join()


DROPPED = (0, "", {})
"""Instead of an answer: the connection ends."""


@contextmanager
def answering(*answers: tuple[int, str, dict[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers in turn, and the idempotency keys that it was sent."""
    given, keys = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            keys.append(self.headers.get("Idempotency-Key", ""))
            status, body, headers = given.pop(0)
            if not status:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with serving(Handler) as url:
        yield url, keys


def problem(status: int, code: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    body = f'{{"type": "", "title": "", "status": {status}, "detail": "no", "code": "{code}"}}'
    return status, body, {"Content-Type": "application/problem+json", **headers}


async def _submit_async(url: str, retries: Retries) -> Job:
    async with AsyncClient(url, retries=retries) as asynchronous:
        return await asynchronous.submit(class_label=1)


def _submit(url: str, retries: Retries) -> Job:
    with Client(url, retries=retries) as synchronous:
        return synchronous.submit(class_label=1)


@pytest.fixture
def done(open_gateway: Callable[..., TestClient]) -> Job:
    """A job as an answer tells of it, and as if it had succeeded."""
    posted = Job.model_validate_json(open_gateway().post("/generate", json={"class_label": 1}).content)
    return posted.model_copy(update={"status": JobStatus.SUCCEEDED})


SUBMITS: list[Callable[[str, Retries], Job]] = [
    _submit,
    lambda url, retries: asyncio.run(_submit_async(url, retries)),
]


async def _wait_async(url: str, retries: Retries) -> Job:
    async def ignore(event: object) -> None:
        pass

    async with AsyncClient(url, retries=retries) as asynchronous:
        return await asynchronous.wait("id", on_event=ignore)


def _wait(url: str, retries: Retries) -> Job:
    with Client(url, retries=retries) as synchronous:
        return synchronous.wait("id", on_event=lambda event: None)


WAITS: list[Callable[[str, Retries], Job]] = [_wait, lambda url, retries: asyncio.run(_wait_async(url, retries))]


@pytest.mark.parametrize("wait", WAITS, ids=["sync", "async"])
def test_a_follower_is_as_patient_as_other_calls_and_asks_for_nothing_twice(
    done: Job, wait: Callable[[str, Retries], Job]
) -> None:
    stream = {"Content-Type": "text/event-stream"}
    cut = (200, f"event: status\nid: 1-0\ndata: {done.model_dump_json()}\n\n", {**stream, "Content-Length": "999999"})
    end = (200, f"event: done\nid: 2-0\ndata: {done.model_dump_json()}\n\n", stream)
    away = problem(503, "store_unavailable", **{"Retry-After": "0"})
    with answering(away, away, cut, away, away, end) as (url, keys):
        assert wait(url, Retries(times=3, first_s=0.01)) == done
        assert len(keys) == 6
    with answering(away, away) as (url, _), pytest.raises(StoreUnavailable):
        wait(url, Retries(times=1, first_s=0.01))
    with answering(problem(404, "job_not_found")) as (url, _), pytest.raises(JobNotFound):
        wait(url, Retries(first_s=0.01))


@pytest.mark.parametrize("wait", WAITS, ids=["sync", "async"])
def test_a_server_that_was_there_is_awaited_for_longer(done: Job, wait: Callable[[str, Retries], Job]) -> None:
    stream = {"Content-Type": "text/event-stream"}
    begun = (200, f"event: status\nid: 1-0\ndata: {done.model_dump_json()}\n\n", stream)
    end = (200, f"event: done\nid: 2-0\ndata: {done.model_dump_json()}\n\n", stream)
    retries = Retries(times=3, times_unmet=0, first_s=0.01)
    with answering(begun, *[DROPPED] * 3, end) as (url, keys):
        assert wait(url, retries) == done
        assert len(keys) == 5
    with answering(begun, *[DROPPED] * 4) as (url, _), pytest.raises(Unreachable):
        wait(url, retries)


def test_calls_outlive_a_gateway_that_is_started_anew(done: Job) -> None:
    there = (200, done.model_dump_json(), {})
    with answering(there, *[DROPPED] * 3, there, *[DROPPED] * 3, there) as (url, keys):
        with Client(url, retries=Retries(times=3, times_unmet=0, first_s=0.01)) as ours:
            assert [ours.job("id"), ours.job("id"), ours.job("id")] == [done] * 3
        assert len(keys) == 9


@pytest.mark.parametrize(("has_served", "least_s", "most_s"), [(False, 2, 5), (True, 20, 35)], ids=["unmet", "away"])
def test_by_default_a_server_that_served_is_awaited_for_as_long_as_a_gateway_takes_to_start(
    has_served: bool, least_s: float, most_s: float
) -> None:
    retries = Retries()
    tries = retries.times if has_served else retries.times_unmet
    attempts, refused = Attempts(Server("http://here", retries, has_served)), httpx.ConnectError("refused")
    assert least_s < sum(attempts.pause_after(refused) for _ in range(tries)) < most_s
    with pytest.raises(Unreachable):
        attempts.pause_after(refused)


def test_a_failure_without_words_is_told_by_its_kind() -> None:
    attempts = Attempts(Server("http://here", Retries(times=0)))
    with pytest.raises(Unreachable, match="No answer from http://here: ReadTimeout"):
        attempts.pause_after(httpx.ReadTimeout(""))


def test_an_error_names_the_line_of_a_batch() -> None:
    status, body, headers = problem(422, "unknown_label")
    with answering((status, body.replace("{", '{"line": 7, ', 1), headers)) as (url, _), Client(url) as ours:
        with pytest.raises(UnknownLabel) as refusal:
            ours.submit_batch([{}])
        assert refusal.value.line == 7


@pytest.mark.parametrize("submit", SUBMITS, ids=["sync", "async"])
def test_a_full_queue_is_tried_again_under_one_key_and_a_refusal_is_not(
    done: Job, submit: Callable[[str, Retries], Job]
) -> None:
    accepted = done.model_dump_json()
    quick = Retries(first_s=0.01)
    full = problem(429, "queue_full", **{"Retry-After": "0"})
    with answering(full, problem(503, "no_worker"), (202, accepted, {})) as (url, keys):
        assert submit(url, quick).request.class_label == 1
        assert len(keys) == 3
        assert len(set(keys)) == 1
        assert keys[0]
    with answering(problem(422, "invalid_request")) as (url, keys), pytest.raises(InvalidRequest):
        submit(url, quick)
    with answering(*[problem(503, "no_worker")] * 3) as (url, keys), pytest.raises(NoWorker):
        submit(url, Retries(times=2, first_s=0.01))
    with answering(problem(429, "queue_full", **{"Retry-After": "86400"})) as (url, _), pytest.raises(QueueFull) as far:
        submit(url, quick)
    assert far.value.retry_after_s == 86400
    with pytest.raises(Unreachable):
        submit("http://127.0.0.1:9", Retries(times=1, first_s=0.01))


def test_a_field_that_no_model_has_is_refused_before_anything_is_sent() -> None:
    with Client("http://127.0.0.1:9") as client:
        with pytest.raises(UnknownField, match="Did you mean 'class_label'") as refusal:
            client.generate(klass_label="bag")
        assert refusal.value.field == "klass_label"
        with pytest.raises(InvalidRequest, match="steps must be at least 1"):
            client.submit(class_label="bag", steps=0)
        [drawn] = client.batch([{"klass_label": 1}])
        assert isinstance(drawn.error, UnknownField)
