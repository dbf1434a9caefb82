"""Traces: how long each part of a request and of its job took, sent to an OpenTelemetry collector if one is set.

Without one, OpenTelemetry is not imported, and every function here does nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cynosure import __version__
from jobs.starting import InvalidSettings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

STOP_S = 5.0  # a collector that is away holds up the end no longer
_PROTOCOL = "http/protobuf"
_provider: TracerProvider | None = None


def start(program: str) -> None:
    """Send this program's spans to the collector at `OTEL_EXPORTER_OTLP_ENDPOINT`, if that is set.

    Args:
        program: the service's name, unless `OTEL_SERVICE_NAME` gives another.

    Raises:
        InvalidSettings: OpenTelemetry is not installed, or another protocol is asked for.
    """
    global _provider
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", _PROTOCOL)
    if protocol != _PROTOCOL:
        raise InvalidSettings(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r}: traces are sent as {_PROTOCOL} only")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        remedy = "pip install 'cynosure[traces]'"
        raise InvalidSettings(f"OTEL_EXPORTER_OTLP_ENDPOINT is set, and OpenTelemetry is missing: {remedy}") from None
    name = os.environ.get("OTEL_SERVICE_NAME", program)
    resource = Resource.create({"service.name": name, "service.version": __version__})
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))


def stop() -> None:
    """Send what was not sent yet, within `STOP_S`, and then nothing more."""
    global _provider
    stopped, _provider = _provider, None
    if stopped is not None:
        sending = threading.Thread(target=stopped.shutdown, name="traces", daemon=True)
        sending.start()
        sending.join(STOP_S)


def tracer_provider() -> TracerProvider | None:
    """OpenTelemetry's provider, for libraries that make spans themselves; `None` without a collector."""
    return _provider


@contextmanager
def span(
    name: str, *, parent: str = "", began_at: float | None = None, **attributes: str | int | float
) -> Iterator[None]:
    """A span of what happens inside.

    Args:
        name: of the span.
        parent: traceparent of the span that it belongs to; by default the one around.
        began_at: when it began, on `time.monotonic`; by default now.
        attributes: of the span; their names get the prefix `cynosure.`.
    """
    provider = _provider  # another thread may stop all this
    if provider is None:
        yield
        return
    with provider.get_tracer("cynosure").start_as_current_span(
        name,
        context=_context(parent),
        attributes={f"cynosure.{key}": value for key, value in attributes.items()},
        start_time=None if began_at is None else _unix_ns(began_at),
        record_exception=False,  # a log has it
    ):
        yield


def add(name: str, began_at: float, ended_at: float, ticks: Sequence[tuple[int, float]] = ()) -> None:
    """Add a span of the past, in the one around; times are those of `time.monotonic`.

    Args:
        name: of the span.
        began_at: its begin.
        ended_at: its end.
        ticks: evaluations done, and when: an event each.
    """
    provider = _provider
    if provider is None:
        return
    past = provider.get_tracer("cynosure").start_span(name, start_time=_unix_ns(began_at))
    for evaluations, at in ticks:
        past.add_event("tick", {"cynosure.evaluations": evaluations}, timestamp=_unix_ns(at))
    past.end(_unix_ns(ended_at))


def describe(attributes: Mapping[str, str | int | float]) -> None:
    """Add attributes to the span around."""
    if _provider is None:
        return
    from opentelemetry.trace import get_current_span

    get_current_span().set_attributes(attributes)


def traceparent() -> str:
    """The span around, as W3C Trace Context writes it; an empty string without one."""
    if _provider is None:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return headers.get("traceparent", "")


def trace_id_of(traceparent: str) -> str:
    """The trace's id in W3C's `00-TRACE-SPAN-FLAGS`; empty if that is."""
    return traceparent[3:35]


def _context(parent: str) -> Context | None:
    if not parent:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": parent})


def _unix_ns(at: float) -> int:
    return time.time_ns() - int((time.monotonic() - at) * 1e9)
