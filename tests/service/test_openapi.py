"""The schema: what it says is so, on a running gateway, and it changes only where somebody looks."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import hypothesis
import pytest
import schemathesis
import uvicorn
from fastapi.testclient import TestClient
from schemathesis.specs.openapi import checks

from app.gateway import answers
from app.gateway.routes import plan
from app.gateway.settings import GatewaySettings
from app.main import create_app
from cynosure.contract import ModelCard
from harness.processes import free_port, is_ready, wait_until
from jobs.accounts.api_keys import KeyRing, Scope
from jobs.fleet import FleetRegistry
from jobs.settings import StoreSettings

SNAPSHOT = Path(__file__).resolve().parents[2] / "docs/openapi.json"


@schemathesis.serializer("application/x-ndjson")
def ndjson(context: Any, value: Any) -> Any:
    return value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")


def no_fault(context: Any, response: schemathesis.Response, case: schemathesis.Case) -> None:
    """A 503 (nobody draws here) and a job that took too long are answers; a fault of the gateway is none."""
    assert b'"internal"' not in response.content, response.text


CHECKS = [
    no_fault,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.missing_required_header,
    checks.unsupported_method,
    checks.ignored_auth,
]
"""Not `positive_data_acceptance`: what a model can't do is refused though the schema, which knows no model, has it."""


class Gateway:
    """A gateway of this process over TCP, where a worker said what it holds and never draws."""

    def __init__(self, settings: StoreSettings, card: ModelCard) -> None:
        self.port, self.stopping, self.settings = free_port(), threading.Event(), settings
        self.url = f"http://127.0.0.1:{self.port}"
        self.token = anyio.run(_new_token, settings)
        app = create_app(GatewaySettings(auth="required", max_wait_s=0), settings)
        config = uvicorn.Config(app, port=self.port, log_level="warning", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.threads = [
            threading.Thread(target=self.server.run),
            threading.Thread(target=self._keep_published, args=(settings, card)),
        ]

    def _keep_published(self, settings: StoreSettings, card: ModelCard) -> None:
        registry = FleetRegistry(settings)
        registry.publish("worker", [card])
        while not self.stopping.wait(5):
            registry.publish("worker", [card])

    def lose_worker(self) -> None:
        self.stopping.set()
        self.threads[1].join()
        FleetRegistry(self.settings).withdraw("worker")

    def start(self) -> None:
        for thread in self.threads:
            thread.start()
        wait_until(lambda: is_ready(self.url), what="the gateway is ready")

    def stop(self) -> None:
        self.stopping.set()
        self.server.should_exit = True
        for thread in self.threads:
            thread.join()


async def _new_token(settings: StoreSettings) -> str:
    async with KeyRing.connect(settings) as ring:
        _, token = await ring.create("schema", [Scope.SUBMIT, Scope.READ], days=1)
        return token


@pytest.fixture
def gateway(store_settings: StoreSettings, card: ModelCard, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    monkeypatch.setattr(plan, "TIMEOUT_S", 0.1)  # nobody answers
    monkeypatch.setattr(answers, "MAX_HELD_S", 0.1)
    one = Gateway(store_settings, card)
    one.start()
    try:
        yield one
    finally:
        one.stop()


def test_what_the_schema_says_is_so(gateway: Gateway) -> None:
    schema = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    faults: list[str] = []
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @hypothesis.settings(
            max_examples=16,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        )
        @hypothesis.given(case=operation.as_strategy() | operation.as_strategy(schemathesis.GenerationMode.NEGATIVE))
        def conforms(case: schemathesis.Case) -> None:
            nonlocal tried
            tried += 1
            headers = {"Authorization": f"Bearer {gateway.token}"}
            case.call_and_validate(headers=headers, checks=CHECKS, timeout=20)

        try:
            conforms()
        except (Exception, BaseExceptionGroup) as error:
            faults.append(f"{operation.label}: {_text(error)}")
    assert tried > 100
    assert not faults, "\n\n".join(faults)


def _text(error: BaseException) -> str:
    inner = "".join(f"\n{_text(one)}" for one in error.exceptions) if isinstance(error, BaseExceptionGroup) else ""
    return f"{error}{inner}"


def test_every_route_says_what_it_does_and_how_it_refuses() -> None:
    for path, methods in _schema()["paths"].items():
        for method, operation in methods.items():
            assert operation.get("summary"), (method, path)
            assert operation.get("description"), (method, path)
            refusals = {status for status in operation["responses"] if status >= "400"}
            assert refusals or path in ("/healthz", "/docs", "/openapi.json"), (method, path)


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("/generate", "GenerateRequest"),
        ("/sweeps", "SweepRequest"),
        ("/batches", "BatchLine"),
        ("/v1/images/generations", "ImageParams"),
        ("/sdapi/v1/txt2img", "TextToImage"),
        ("/sdapi/v1/img2img", "ImageToImage"),
        ("/sdapi/v1/options", "Options"),
    ],
)
def test_the_examples_work_as_they_are(
    open_gateway: Callable[..., TestClient],
    card: ModelCard,
    store_settings: StoreSettings,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    schema: str,
) -> None:
    monkeypatch.setattr(answers, "MAX_HELD_S", 0.01)  # nobody draws: it is accepted, and that is what is asked
    gateway = open_gateway()
    samplers = (*card.samplers, "euler_ancestral")
    whole = card.model_copy(update={"labels": (*card.labels, *"3456", "bag", "9"), "samplers": samplers})
    FleetRegistry(store_settings).publish("worker", [whole])
    for example in _schema()["components"]["schemas"][schema]["examples"]:
        answer = gateway.post(path, json=[example] if path == "/batches" else example)
        assert answer.status_code in (200, 202) or '"code":"job_failed"' in answer.text, answer.text


def test_the_schema_is_the_one_that_was_reviewed() -> None:
    """`make openapi` writes it anew; the difference is what a reviewer should look at."""
    assert json.loads(SNAPSHOT.read_text()) == _schema()


def _schema() -> dict[str, Any]:
    return create_app(GatewaySettings(), StoreSettings()).openapi()
