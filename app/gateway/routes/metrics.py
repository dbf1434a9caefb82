"""GET /metrics: what the gateway has counted, and how the queues are at the moment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.gateway.door.auth import Admin
from app.gateway.state import State, StateDep
from cynosure.contract import WorkerState, WorkerStatus
from cynosure.errors import CynosureError
from jobs.queue.vitals import PLACES, VitalSigns

STORE_S = 3.0  # Prometheus waits for 10 s by default
router = APIRouter(tags=["health"])
log = logging.getLogger(__name__)


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(state: StateDep, caller: Admin) -> Response:
    """In Prometheus's text format; docs/operations.md lists them. `CYNOSURE_METRICS_PORT` gives them without a key."""
    return await scraped(state)


class MetricsPort:
    """Answers GET /metrics, without a key, and nothing else on the port that is for it; other ports as they are."""

    def __init__(self, app: ASGIApp, port: int | None) -> None:
        self.app = app
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._port is None or scope["type"] != "http" or scope["server"][1] != self._port:
            await self.app(scope, receive, send)
        elif scope["path"] == "/metrics" and scope["method"] == "GET":
            await (await scraped(scope["state"]))(scope, receive, send)
        else:
            await PlainTextResponse("This port has GET /metrics only.\n", 404)(scope, receive, send)


async def scraped(state: State) -> Response:
    """All metrics in Prometheus's text format. If the store is away, `cynosure_store_up` is 0 and its own are left out.

    The models are those that take jobs, and others whose jobs still wait.
    """
    store, metrics = state["store"], state["metrics"]
    try:
        async with asyncio.timeout(STORE_S):
            workers, statuses = await store.fleet.workers(), await store.fleet.statuses()
            signs = await store.vitals.read(list(dict.fromkeys((*workers.by_model, *await store.fleet.known()))))
        found: _Found | None = _Found(workers.by_model, statuses, signs)
    except (CynosureError, TimeoutError) as error:
        log.warning("the metrics lack those of the store: %s", str(error) or f"no answer within {STORE_S:g} s")
        found = None
    registry = CollectorRegistry()
    registry.register(_OfTheStore(found))
    return Response(generate_latest(metrics.registry) + generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


@dataclass(frozen=True)
class _Found:
    served: Collection[str]
    workers: Sequence[WorkerStatus]
    signs: VitalSigns


class _OfTheStore(Collector):
    """The metrics that are read at the scrape."""

    def __init__(self, found: _Found | None) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        yield _gauge("cynosure_store_up", "Whether the store answered.", int(self._found is not None))
        if self._found is None:
            return
        workers, signs = self._found.workers, self._found.signs
        yield from _of_queues(signs, self._found.served)
        fleet = GaugeMetricFamily("cynosure_workers", "Live workers; measuring ones are slower.", labels=["state"])
        for state in WorkerState:
            fleet.add_metric([state.value], sum(worker.state is state for worker in workers))
        yield fleet
        yield _gauge("cynosure_jobs_running", "Jobs that workers hold.", signs.running)
        yield _gauge(
            "cynosure_lease_overdue_seconds",
            "Time since the first lease expired that no worker has noticed yet; 0 if none has.",
            signs.overdue_s,
        )
        memory = GaugeMetricFamily(
            "cynosure_store_memory_bytes", "Memory of the store's data; a limit of 0 is none.", labels=["kind"]
        )
        memory.add_metric(["used"], signs.store.used_bytes)
        memory.add_metric(["limit"], signs.store.limit_bytes)
        yield memory
        yield _gauge("cynosure_store_writes", "Whether its last writes to disk succeeded.", int(signs.store.writes))
        yield _gauge("cynosure_store_file_bytes", "Size of its append-only file.", signs.store.file_bytes)


def _of_queues(signs: VitalSigns, served: Collection[str]) -> Iterator[Metric]:
    waiting = GaugeMetricFamily(
        "cynosure_queue_jobs", "Jobs that wait, by priority, in back-off or as suspects.", labels=["model", "priority"]
    )
    oldest = GaugeMetricFamily(
        "cynosure_queue_oldest_seconds", "Time since the oldest waiting job was accepted.", labels=["model"]
    )
    for model, queue in signs.queues.items():
        if model not in served and not any(queue.waiting.values()):
            continue
        oldest.add_metric([model], queue.oldest_s)
        for place in PLACES:
            waiting.add_metric([model, place], queue.waiting[place])
    yield waiting
    yield oldest


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, value=value)
