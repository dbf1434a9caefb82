"""Traces: from the client's request through the record to the worker and the webhook, in a real collector's format."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from harness.processes import ROOT, clean_environment, wait_until
from jobs import traces
from jobs.queue.doorbell import Doorbell
from jobs.queue.worker import WorkerStore
from models.engine import Engine
from tests.conftest import serving
from tests.service.test_webhooks import SETTINGS, Receiver, receiver, status_of
from workers.host import EngineHost

__all__ = ["receiver"]  # a fixture

TRACE, CLIENT = "4" * 32, "7" * 16


class Collector:
    """What an OTLP collector was sent: the spans, and the names of their services."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                is_zipped = self.headers.get("Content-Encoding") == "gzip"
                sent = ExportTraceServiceRequest.FromString(gzip.decompress(body) if is_zipped else body)
                assert self.path == "/v1/traces"
                for resource in sent.resource_spans:
                    collector.services |= {
                        each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
                    }
                    collector.spans += [span for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self.handler = Handler

    def named(self, name: str) -> Span:
        [found] = [span for span in self.spans if span.name == name]
        return found


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    one = Collector()
    with serving(one.handler) as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        traces.start("cynosure-test")
        try:
            yield one
        finally:
            traces.stop()


def attributes(span: Span) -> dict[str, Any]:
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in span.attributes}


def test_a_job_is_followed_from_its_request_to_its_webhook(
    collector: Collector,
    open_gateway: Callable[..., TestClient],
    receiver: Receiver,
    worker_store: WorkerStore,
    doorbell: Doorbell,
    small_pack: Path,
) -> None:
    gateway = open_gateway(**SETTINGS)
    told = {"class_label": 1, "steps": 25, "num_images": 2, "webhook_url": receiver.url}
    sent = {"traceparent": f"00-{TRACE}-{CLIENT}-01", "X-Request-Id": "mine"}
    assert gateway.post("/generate?signature=secret", json=told, headers=sent).status_code == 422
    job_id = gateway.post("/generate", json=told, headers=sent).json()["id"]
    with Engine([str(small_pack)]) as engine:
        options: dict[str, Any] = {"worker_name": "w", "slots": 4, "heartbeat_s": 1, "job_timeout_s": 60}
        EngineHost(engine, worker_store, doorbell, **options).run("fashion")
    wait_until(lambda: status_of(gateway, job_id) == "delivered", what="delivered")
    traces.stop()

    of_trace = [span for span in collector.spans if span.trace_id.hex() == TRACE]
    refused, request = sorted(
        (span for span in of_trace if span.name == "POST /generate"), key=lambda span: span.start_time_unix_nano
    )
    assert request.parent_span_id.hex() == CLIENT
    assert attributes(request).items() >= {"cynosure.request_id": "mine", "http.response.status_code": 202}.items()
    assert "secret" not in str(refused)
    accept, job, webhook = (collector.named(name) for name in ("accept", "job", "webhook"))
    assert accept.parent_span_id == request.span_id
    assert attributes(accept)["cynosure.job"] == job_id
    assert job.parent_span_id == webhook.parent_span_id == accept.span_id
    assert attributes(job) == {"cynosure.job": job_id, "cynosure.model": "fashion", "cynosure.attempt": 1}
    [(headers, _)] = receiver.told
    assert headers["traceparent"] == f"00-{TRACE}-{webhook.span_id.hex()}-01"

    parts = [collector.named(name) for name in ("queue", "claim", "prepare", "draw", "decode", "encode", "finish")]
    assert {part.parent_span_id for part in parts} == {job.span_id}
    assert {part.trace_id.hex() for part in (accept, job, webhook, *parts)} == {TRACE}
    assert [part.name for part in sorted(parts, key=lambda part: part.end_time_unix_nano)[-5:]] == [
        "prepare", "draw", "decode", "encode", "finish"
    ]  # fmt: skip
    draw = parts[3]
    assert [(event.name, attributes_of_event(event)) for event in draw.events] == [("tick", n) for n in (1, 10, 20)]
    assert all(draw.start_time_unix_nano <= event.time_unix_nano <= draw.end_time_unix_nano for event in draw.events)
    assert collector.services == {"cynosure-test"}


def attributes_of_event(event: Span.Event) -> int:
    [evaluations] = event.attributes
    return int(evaluations.value.int_value)


def test_without_a_collector_nothing_of_it_is_imported() -> None:
    code = (
        "import sys; from jobs import traces; traces.start('x')\n"
        "with traces.span('a'): traces.add('b', 0, 1); traces.describe({}); assert traces.traceparent() == ''\n"
        "traces.stop(); sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], env=clean_environment(), cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize(
    ("environment", "says"),
    [({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf only"), ({"MISSING": "1"}, "cynosure.traces")],
)
def test_traces_that_can_not_be_sent_are_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], says: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if "MISSING" in environment:
        monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(traces.InvalidSettings, match=says):
        traces.start("x")
