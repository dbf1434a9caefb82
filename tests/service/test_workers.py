"""Workers as operators see them: who lives, what they do, how long jobs take, and a way to end one."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from fastapi.testclient import TestClient

from cynosure.contract import ResolvedRequest, WorkerState, WorkerStatus
from jobs.fleet import FleetRegistry
from jobs.queue.gateway import JobStore
from jobs.queue.recent import MAX_JOBS, recent_jobs
from jobs.queue.record import Finished, Outcome
from jobs.queue.vitals import Vitals
from jobs.queue.worker import WorkerStore
from jobs.settings import StoreSettings
from tests.conftest import accept, bearer, take
from workers.upkeep.drain import Ending

pytestmark = pytest.mark.anyio
A_WORKER = WorkerStatus(
    name="box-1",
    state=WorkerState.SERVING,
    device="cuda:1",
    hardware="NVIDIA H100 80GB HBM3",
    models=("fashion",),
    jobs=3,
    max_jobs=64,
    pictures=5,
    busy=0.5,
    version="0.1.0",
    since=datetime(2026, 1, 1, tzinfo=UTC),
)
DRAINING = A_WORKER.model_copy(update={"name": "box-2", "state": WorkerState.DRAINING})


def test_an_admin_sees_all_workers_and_drains_one(
    open_gateway: Callable[..., TestClient], make_key: Callable[..., str], store_settings: StoreSettings
) -> None:
    fleet, gateway, admin = FleetRegistry(store_settings), open_gateway(), bearer(make_key("admin"))
    assert not any(fleet.tell(status) for status in (DRAINING, A_WORKER))
    found = gateway.get("/admin/workers", headers=admin).json()["workers"]
    assert [WorkerStatus.model_validate(one) for one in found] == [A_WORKER, DRAINING]
    for method, path in (("GET", "/admin/workers"), ("POST", "/admin/workers/box-1/drain")):
        assert gateway.request(method, path, headers=bearer(make_key("submit,read"))).status_code == 403
    assert not fleet.tell(A_WORKER)
    answer = gateway.post("/admin/workers/box-1/drain", headers=admin)
    assert (answer.status_code, answer.json()["name"]) == (202, "box-1")
    assert fleet.tell(A_WORKER), "it is told to drain"
    assert not fleet.tell(DRAINING)
    unknown = gateway.post("/admin/workers/box%2D3/drain", headers=admin)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "worker_not_found")
    assert unknown.json()["detail"] == "There is no worker 'box-3'. Workers: box-1, box-2."
    metrics = gateway.get("/metrics", headers=admin).text
    assert dict(re.findall(r'^cynosure_workers{state="(\w+)"} (\S+)$', metrics, re.MULTILINE)) == {
        "serving": "1.0",
        "measuring": "0.0",
        "draining": "1.0",
    }
    assert gateway.get("/status", headers=admin).json()["workers"] == 1, "the one whose cards are published"
    fleet.leave("box-1")
    assert gateway.post("/admin/workers/box-1/drain", headers=admin).status_code == 404


async def test_the_last_jobs_tell_how_long_jobs_take(
    store: JobStore, worker_store: WorkerStore, store_settings: StoreSettings, request_: ResolvedRequest
) -> None:
    for _ in range(2):
        await accept(store, request_)
    again = take(worker_store)
    assert worker_store.release(again, Outcome.HANDED_BACK)
    for _ in range(2):
        made = Finished(pictures=(b"1", b"2", b"3"), reproducible=True, digests=("d",))
        assert worker_store.finish(take(worker_store), made)
    async with Vitals.connect(store_settings) as vitals:
        [fashion, emoji], running = await vitals.flows(["fashion", "emoji"])
    assert (running, emoji.recent, sum(fashion.queue.waiting.values())) == (0, None, 0)
    assert fashion.recent is not None
    assert (fashion.recent.jobs, fashion.recent.pictures_per_second) == (2, 6 / 60)
    for quantiles in (fashion.recent.waited_s, fashion.recent.ran_s):
        assert 0 <= quantiles.p50 <= quantiles.p95


def test_times_of_jobs_are_those_of_the_last_minutes() -> None:
    now_ms = 10_000_000

    def ended(ago_s: int, waited_s: int) -> bytes:
        return b"%d %d %d 2" % (now_ms - ago_s * 1000, waited_s * 1000, 2000 * waited_s)

    recent = recent_jobs([ended(1, 4), *(ended(70, waited) for waited in range(1, 20)), ended(301, 99)], now_ms)
    assert recent is not None
    assert (recent.jobs, recent.pictures_per_second) == (20, 2 / 60)
    assert (recent.waited_s.p50, recent.waited_s.p95, recent.ran_s.p95) == (9, 18, 36)
    assert recent_jobs([ended(301, 1)], now_ms) is None
    busy = recent_jobs([ended(index // 16, 1) for index in range(MAX_JOBS)], now_ms)
    assert busy is not None
    assert busy.pictures_per_second == 2 * MAX_JOBS / 15, "those before are not known, and not counted as none"


def test_only_who_was_told_to_drain_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.kill", lambda pid, number: None)
    alone, supervised = Ending(is_supervised=False), Ending(is_supervised=True)
    assert (alone.exit_code, supervised.exit_code) == (0, 75), "after a signal"
    alone.for_restart()
    supervised.for_good()
    supervised.for_restart()  # its device failed while it drained
    assert (alone.exit_code, supervised.exit_code) == (75, 0)
