"""What Prometheus is told: names that stay, labels that no client can multiply, a board and alerts that fit them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import redis
import yaml
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import AggregateExpr, VectorSelector

from app.gateway.settings import GatewaySettings
from app.main import create_app
from cynosure.contract import JobError, Priority, ResolvedRequest
from harness.processes import wait_until
from jobs.fleet import Fleet
from jobs.queue.gateway import JobStore
from jobs.queue.record import EVERYONE, Finished, Outcome
from jobs.queue.vitals import Vitals
from jobs.queue.worker import WorkerStore
from jobs.settings import StoreSettings
from tests.conftest import accept, bearer, lose, take

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).resolve().parents[2]
OF_PROMETHEUS = frozenset({"le", "instance", "job", "namespace", "pod"})
DRAWN = Finished(pictures=(b"png",), reproducible=True, digests=("d",))
Labels = Mapping[str, set[str]]
"""Of metrics: the names of their labels."""


def _labels_in(text: str) -> Labels:
    """Our metrics that have samples in an answer, and the labels of these."""
    return {
        sample.name: set(sample.labels) - {"le"}
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("cynosure_")
    }


def _base(name: str, known: Labels) -> str:
    """A histogram's name, of that of one of its series."""
    stem = re.sub(r"_(bucket|count|sum)$", "", name)
    return stem if f"{stem}_bucket" in known else name


def _documented() -> dict[str, Labels]:
    """The metrics in docs/operations.md, by process."""
    rows = re.findall(
        r"^\| `(cynosure_\w+)(?:\{([\w,]+)\})?` \| (gateway|worker|both) \|",
        (ROOT / "docs/operations.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) > 20
    return {
        process: {name: set(labels.split(",")) - {""} for name, labels, of in rows if of in (process, "both")}
        for process in ("gateway", "worker")
    }


@pytest.fixture(scope="module")
def told(server_url: str, metrics_port: int) -> dict[str, Labels]:
    """What the processes of a running service tell after some load, by process."""
    for seed in (1, 1, 2):  # the second from the cache
        body = {"class_label": 1, "steps": 4, "seed": seed}
        headers = {"Accept": "image/png"}
        assert httpx.post(f"{server_url}/generate", json=body, headers=headers, timeout=120).status_code == 200
    addresses = {"gateway": metrics_port, "worker": metrics_port + 1}
    texts: dict[str, str] = {}

    def has_finished() -> bool:  # clients are told of a job's end before the worker has counted it
        for process, port in addresses.items():
            texts[process] = httpx.get(f"http://127.0.0.1:{port}/metrics").raise_for_status().text
        return all("cynosure_jobs_finished_total{" in text for text in texts.values())

    wait_until(has_finished, seconds=10, what="both have counted a job")
    return {process: _labels_in(text) for process, text in texts.items()}


def test_a_running_service_has_the_documented_metrics(told: dict[str, Labels]) -> None:
    for process, documented in _documented().items():
        found = {_base(name, told[process]): labels for name, labels in told[process].items()}
        assert found == documented, process


def _queries() -> Iterator[str]:
    board = json.loads((ROOT / "deploy/grafana/boards/cynosure.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"].replace("$__rate_interval", "1m")
    for variable in board["templating"]["list"]:
        found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"])
        assert found
        yield f"max by ({found[2]}) ({found[1]})"
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())
    yield from (rule["expr"] for group in rules["groups"] for rule in group["rules"])
    for scaled in (ROOT / "deploy/kubernetes").rglob("scaled-object.yaml"):
        yield from (trigger["metadata"]["query"] for trigger in yaml.safe_load(scaled.read_text())["spec"]["triggers"])


def _selectors(expression: Any) -> list[VectorSelector]:
    found: list[VectorSelector] = []
    promql_parser.walk(expression, lambda node: found.append(node) if isinstance(node, VectorSelector) else None)
    return found


def _unknown(query: str, known: Labels) -> Iterator[str]:
    """What the query asks for that nobody tells."""
    expression = promql_parser.parse(query)
    for selector in _selectors(expression):
        asked = {matcher.name for matcher in selector.matchers.matchers}
        if selector.name not in known:
            yield str(selector.name)
        elif lacking := asked - known[selector.name] - OF_PROMETHEUS:
            yield f"{selector.name}{lacking}"
    groupings: list[AggregateExpr] = []
    promql_parser.walk(expression, lambda node: groupings.append(node) if isinstance(node, AggregateExpr) else None)
    for grouping in groupings:
        of_all = [known.get(selector.name or "", set()) for selector in _selectors(grouping.expr)]
        by = set(grouping.modifier.labels) if grouping.modifier else set()
        if lacking := by - OF_PROMETHEUS - set.intersection(*map(set, of_all)):
            yield f"by {lacking}"


def test_the_board_and_the_alerts_ask_for_what_there_is(told: dict[str, Labels]) -> None:
    known = {**told["gateway"], **told["worker"], "up": set()}
    queries = list(_queries())
    assert len(queries) > 40
    assert {query: lacking for query in queries if (lacking := list(_unknown(query, known)))} == {}
    for mistaken in ("cynosure_queue_job", 'cynosure_queue_jobs{status="a"}', "sum by (code) (cynosure_queue_jobs)"):
        assert list(_unknown(mistaken, known)), "and this test would notice"


def test_the_runbook_has_a_paragraph_for_every_alert() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    assert re.findall(r"^\*\*(Cynosure\w+)\.\*\*", (ROOT / "docs/operations.md").read_text(), re.MULTILINE) == alerts


def test_a_workers_port_tells_that_it_is_ready(server_url: str, metrics_port: int) -> None:
    answers = {path: httpx.get(f"http://127.0.0.1:{metrics_port + 1}{path}") for path in ("/healthz", "/readyz", "/")}
    assert {path: answer.status_code for path, answer in answers.items()} == {"/healthz": 200, "/readyz": 200, "/": 404}
    assert "server" not in answers["/"].headers


def test_the_gateways_port_has_nothing_else(server_url: str, metrics_port: int) -> None:
    url = f"http://127.0.0.1:{metrics_port}"
    asked = [httpx.get(f"{url}/jobs"), httpx.get(f"{url}/healthz"), httpx.post(f"{url}/metrics")]
    assert {answer.status_code for answer in asked} == {404}


def test_metrics_take_a_key_with_the_scope_admin(
    open_gateway: Callable[..., TestClient], make_key: Callable[..., str]
) -> None:
    gateway = open_gateway()
    assert gateway.get("/metrics").status_code == 403
    assert gateway.get("/metrics", headers=bearer(make_key("submit,read"))).status_code == 403
    assert gateway.get("/metrics", headers=bearer(make_key("admin"))).status_code == 200


def test_clients_can_not_multiply_series(open_gateway: Callable[..., TestClient], make_key: Callable[..., str]) -> None:
    gateway, key = open_gateway(), bearer(make_key("admin,submit,read"))

    def series() -> set[str]:
        return set(
            re.findall(r"^cynosure_http_request_seconds_count\S+", gateway.get("/metrics", headers=key).text, re.M)
        )

    def strain(name: str) -> None:
        gateway.get(f"/{name}", headers=key)
        gateway.get(f"/jobs/{name}", headers=key)
        gateway.head(f"/jobs/{name}", headers=key)
        gateway.request(name.upper(), "/generate", headers=key)
        gateway.post("/generate", json={"model": name, "class_label": 1}, headers=key)

    gateway.get("/metrics", headers=key)
    strain("one")
    before = series()
    for name in ("two", "three", "four"):
        strain(name)
    assert series() == before
    assert not any(name in one for one in before for name in ("one", "ONE"))


def test_a_gateway_counts_a_job_once(open_gateway: Callable[..., TestClient], make_key: Callable[..., str]) -> None:
    gateway, key = open_gateway(), bearer(make_key("admin,submit,read"))
    body, headers = {"class_label": 1, "steps": 4, "seed": 1}, {**key, "Idempotency-Key": "one"}
    [job_id] = {gateway.post("/generate", json=body, headers=headers).json()["id"] for _ in range(2)}
    for _ in range(2):
        gateway.delete(f"/jobs/{job_id}", headers=key)
    text = gateway.get("/metrics", headers=key).text
    for line in (
        'cynosure_jobs_accepted_total{model="fashion",route="generate"} 1.0',
        'cynosure_jobs_finished_total{code="",model="fashion",status="cancelled"} 1.0',
        "cynosure_result_cache_misses_total 1.0",
        'cynosure_http_request_seconds_count{method="POST",route="/generate",status="202"} 2.0',
    ):
        assert line in text.splitlines()


def test_without_the_store_there_are_the_gateways_own(store_settings: StoreSettings) -> None:
    nowhere = store_settings.model_copy(update={"redis_url": "unix:///nowhere/valkey.sock"})
    app = create_app(GatewaySettings(), nowhere, metrics_port=80)
    with TestClient(app, "http://127.0.0.1") as gateway:
        text = gateway.get("/metrics").raise_for_status().text
    assert "cynosure_store_up 0.0" in text
    assert "cynosure_result_cache_hits_total 0.0" in text
    assert "cynosure_queue_jobs{" not in text


async def test_waiting_jobs_are_told_by_priority(
    store: JobStore,
    worker_store: WorkerStore,
    store_settings: StoreSettings,
    raw: redis.Redis,
    request_: ResolvedRequest,
) -> None:
    await accept(store, request_, priority=Priority.HIGH)
    assert worker_store.release(take(worker_store), Outcome.FAULTED)
    first = await accept(store, request_)
    lose(worker_store, raw, store_settings.key_prefix, times=2)
    for priority in (Priority.HIGH, Priority.LOW, Priority.LOW):
        await accept(store, request_, priority=priority)
    async with Vitals.connect(store_settings) as vitals:
        signs = await vitals.read(["fashion", "emoji"])
        queue = signs.queues["fashion"]
        assert queue.waiting == {"high": 1, "normal": 0, "low": 2, "back_off": 1, "suspect": 1}
        oldest_ms = (await store.get(first, EVERYONE)).created_ms
        seconds, _ = raw.time()
        assert queue.oldest_s <= seconds + 1 - oldest_ms / 1000
        assert queue.oldest_s > 0
        assert signs.queues["emoji"].oldest_s == 0
        assert (signs.running, signs.overdue_s) == (0, 0)
        assert signs.store.writes


async def test_jobs_that_lost_their_worker_are_told_as_overdue(
    store: JobStore,
    worker_store: WorkerStore,
    store_settings: StoreSettings,
    raw: redis.Redis,
    request_: ResolvedRequest,
) -> None:
    await accept(store, request_)
    claim = take(worker_store)
    async with Vitals.connect(store_settings) as vitals:
        assert (await vitals.read([])).overdue_s == 0
        raw.zadd(f"{store_settings.key_prefix}:leases", {claim.job_id: (raw.time()[0] - 40) * 1000})
        signs = await vitals.read([])
        assert (signs.running, signs.overdue_s >= 40) == (1, True)
        worker_store.reclaim(claim.job_id)
        assert (await vitals.read([])).overdue_s == 0


async def test_a_scrape_asks_the_same_of_a_long_queue_as_of_none(
    store: JobStore, store_settings: StoreSettings, raw: redis.Redis, request_: ResolvedRequest
) -> None:
    def calls() -> Counter[str]:
        told: Any = raw.info("commandstats")
        return Counter({name.removeprefix("cmdstat_"): each["calls"] for name, each in told.items()})

    asked: list[Counter[str]] = []
    async with Vitals.connect(store_settings) as vitals, Fleet.connect(store_settings) as fleet:
        await vitals.read(["fashion"])  # the connection's own commands
        await fleet.workers()
        for waiting in (0, 200):
            while (await vitals.read(["fashion"])).queues["fashion"].waiting["normal"] < waiting:
                await accept(store, request_, priority=Priority.NORMAL)
            before = calls()
            await vitals.read(["fashion"])
            await fleet.workers()
            asked.append(calls() - before)
    assert asked[0] == asked[1]
    assert asked[0].total() < 25
    assert not asked[0].keys() & {"scan", "keys", "hgetall", "lrange", "smembers", "zscan", "zrangebyscore", "sort"}


async def test_a_worker_counts_what_becomes_of_its_jobs(
    store: JobStore,
    worker_store: WorkerStore,
    store_settings: StoreSettings,
    raw: redis.Redis,
    request_: ResolvedRequest,
) -> None:
    def counted(name: str, **labels: str) -> float:
        return worker_store.metrics.registry.get_sample_value(name, labels) or 0.0

    for _ in range(2):
        await accept(store, request_)
    lose(worker_store, raw, store_settings.key_prefix, times=1)
    again, other = take(worker_store), take(worker_store)
    assert worker_store.finish(again, DRAWN)
    assert worker_store.finish(again, DRAWN), "the answer to the first call was lost"
    assert worker_store.fail(other, JobError(code="sampling_failed", message="NaN"))
    assert not worker_store.finish(other, DRAWN)
    assert counted("cynosure_leases_expired_total") == 1
    assert counted("cynosure_job_queue_seconds_count") == 2, "once a job"
    assert counted("cynosure_jobs_finished_total", model="fashion", status="failed", code="sampling_failed") == 1
    outcomes = {name: counted("cynosure_attempts_total", outcome=name) for name in ("lost", "failed", "stale")}
    assert outcomes == {"lost": 1, "failed": 1, "stale": 1}
    assert counted("cynosure_images_total", model="fashion") == counted(
        "cynosure_job_run_seconds_count", model="fashion"
    )
    assert counted("cynosure_store_seconds_count", script="claim") >= 3
