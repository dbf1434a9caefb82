"""Webhooks: told once a job ends, signed, again until it is heard, again on demand, and never to private addresses."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from fastapi.testclient import TestClient
from standardwebhooks import Webhook, WebhookVerificationError

from app.gateway.webhooks.signing import encoded_secret
from harness.processes import wait_until
from jobs.settings import StoreSettings
from jobs.store.keyspace import Keys
from tests.conftest import bearer, serving

SECRET = encoded_secret(bytes(range(32)))
SETTINGS: dict[str, Any] = {"webhook_secret": SECRET, "webhook_retry_s": (0.01, 0.01, 0.01)}


class Receiver:
    """A server that answers with these statuses in turn, then with 204, once it may; it keeps what it was told."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.told: list[tuple[dict[str, str], bytes]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.told.append(({name.lower(): value for name, value in self.headers.items()}, body))
                receiver.may_answer.wait()
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 204)
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self.handler = Handler
        self.url = ""


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    one = Receiver()
    with serving(one.handler) as url:
        one.url = f"{url}/hook"
        monkeypatch.setenv("CYNOSURE_OUTBOUND_SCHEMES", '["http"]')
        monkeypatch.setenv("CYNOSURE_OUTBOUND_PORTS", f"[{urlsplit(url).port}]")
        monkeypatch.setenv("CYNOSURE_OUTBOUND_ALLOWED_NETWORKS", '["127.0.0.0/8"]')
        yield one


def ended_job(gateway: TestClient, url: str, **headers: str) -> str:
    job_id = gateway.post("/generate", json={"class_label": 1, "webhook_url": url}, headers=headers).json()["id"]
    gateway.delete(f"/jobs/{job_id}", headers=headers)
    return job_id


def status_of(gateway: TestClient, job_id: str) -> str:
    return gateway.get(f"/jobs/{job_id}/webhook").json().get("status", "none")


def test_a_jobs_end_is_told_and_signed(open_gateway: Callable[..., TestClient], receiver: Receiver) -> None:
    gateway = open_gateway(**SETTINGS, public_url="https://img.example.org/draw")
    job_id = ended_job(gateway, receiver.url)
    wait_until(lambda: status_of(gateway, job_id) == "delivered", what="delivered")
    [(headers, body)] = receiver.told
    secret = gateway.get("/webhooks/secret").json()["secret"]
    event = Webhook(secret).verify(body, headers)
    assert (event["type"], event["data"]["id"]) == ("job.cancelled", job_id)
    assert event == json.loads(body)
    assert event["data"]["links"]["self"] == f"https://img.example.org/draw/jobs/{job_id}"
    assert headers["webhook-id"] == f"msg_{job_id}"
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body.replace(b"cancelled", b"succeeded"), headers)


def test_it_is_told_until_it_is_heard_and_again_on_demand(
    open_gateway: Callable[..., TestClient], receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway = open_gateway(**SETTINGS)
    receiver.statuses = [500, 302, 204]
    job_id = ended_job(gateway, receiver.url)
    wait_until(lambda: status_of(gateway, job_id) == "delivered", what="delivered")
    assert gateway.get(f"/jobs/{job_id}/webhook").json()["attempts"] == 3
    lines = [vars(record) for record in caplog.records if record.getMessage().startswith("webhook ")]
    assert [(line["levelname"], line["job"], line["attempt"], line["http_status"]) for line in lines] == [
        ("WARNING", job_id, 1, 500),
        ("WARNING", job_id, 2, 302),
        ("INFO", job_id, 3, 204),
    ]
    assert gateway.post(f"/jobs/{job_id}/webhook/replay").json()["status"] == "pending"
    wait_until(lambda: len(receiver.told) == 4, what="told again")
    assert len({headers["webhook-id"] for headers, _ in receiver.told}) == 1
    assert len({body for _, body in receiver.told}) == 1


@pytest.mark.parametrize("statuses", [[500] * 4, [410]], ids=["never", "gone"])
def test_in_the_end_it_has_failed_and_is_kept(
    open_gateway: Callable[..., TestClient], receiver: Receiver, statuses: list[int]
) -> None:
    gateway = open_gateway(**SETTINGS)
    count, receiver.statuses = len(statuses), list(statuses)
    job_id = ended_job(gateway, receiver.url)
    wait_until(lambda: status_of(gateway, job_id) == "failed", what="failed")
    assert len(receiver.told) == count
    gateway.post(f"/jobs/{job_id}/webhook/replay")
    wait_until(lambda: status_of(gateway, job_id) == "delivered", what="delivered after all")


def test_another_gateway_goes_on_after_a_restart(open_gateway: Callable[..., TestClient], receiver: Receiver) -> None:
    silent = open_gateway()  # it tells no webhooks, but has accepted a job of one that did
    gateway = open_gateway(webhook_secret=SECRET, webhook_retry_s=(0.01,))
    job_id = ended_job(gateway, receiver.url)
    wait_until(lambda: status_of(silent, job_id) == "delivered", what="delivered")
    assert len(receiver.told) == 1


def test_nobody_else_tells_while_a_slow_receiver_may_still_answer(
    open_gateway: Callable[..., TestClient],
    receiver: Receiver,
    raw: redis.Redis,
    store_settings: StoreSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CYNOSURE_OUTBOUND_TIMEOUT_S", "120")
    gateway = open_gateway(**SETTINGS)
    receiver.may_answer.clear()
    try:
        job_id = ended_job(gateway, receiver.url)
        wait_until(lambda: receiver.told, what="told")
        now_s, _ = raw.time()
        due_ms = raw.zscore(Keys(store_settings.key_prefix).webhooks_due, job_id)
    finally:
        receiver.may_answer.set()
    assert due_ms is not None
    assert due_ms / 1000 > now_s + 120


def test_each_key_has_a_secret_of_its_own(
    open_gateway: Callable[..., TestClient],
    receiver: Receiver,
    make_key: Callable[..., str],
) -> None:
    gateway = open_gateway(auth="required", **SETTINGS)
    mine, other = bearer(make_key()), bearer(make_key())
    secrets = [gateway.get("/webhooks/secret", headers=one).json()["secret"] for one in (mine, other)]
    job_id = ended_job(gateway, receiver.url, **mine)
    wait_until(lambda: len(receiver.told) == 1, what="told")
    headers, body = receiver.told[0]
    Webhook(secrets[0]).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(secrets[1]).verify(body, headers)
    for method, path in (("GET", "webhook"), ("POST", "webhook/replay")):
        assert gateway.request(method, f"/jobs/{job_id}/{path}", headers=other).status_code == 404


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/hook",
        "https://127.0.0.1/",
        "https://10.1.2.3/",
        "https://[::1]/",
        "https://169.254.169.254/",
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/sweeps", "/batches"])
def test_a_private_address_is_refused_at_the_door(open_gateway: Callable[..., TestClient], url: str, path: str) -> None:
    request = {"class_label": 1, "webhook_url": url}
    bodies: dict[str, Any] = {
        "/generate": request,
        "/sweeps": {"request": request, "seeds": [1, 2]},
        "/batches": [request],
    }
    answer = open_gateway(**SETTINGS).post(path, json=bodies[path])
    field = "request.webhook_url" if path == "/sweeps" else "webhook_url"
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_without_a_secret_no_webhook_is_taken(open_gateway: Callable[..., TestClient]) -> None:
    gateway = open_gateway()
    answer = gateway.post("/generate", json={"class_label": 1, "webhook_url": "https://example.org/hook"})
    assert (answer.json()["code"], answer.json()["field"]) == ("unsupported_field", "webhook_url")
    assert "CYNOSURE_GATEWAY_WEBHOOK_SECRET" in answer.json()["detail"]
    assert gateway.get("/webhooks/secret").status_code == 404
