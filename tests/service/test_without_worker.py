"""Jobs for a model whose last worker has left: they wait if that is set, and are refused if not."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from fastapi.testclient import TestClient

from app.gateway.settings import GatewaySettings
from app.main import create_app
from cynosure.contract import ModelCard
from cynosure.programs import program
from harness.processes import Process, clean_environment, wait_until
from jobs import plans
from jobs.fleet import FleetRegistry
from jobs.settings import StoreSettings
from tests.conftest import bearer

PICTURE = {"class_label": 1, "seed": 3, "steps": 2, "use_cache": False}


@pytest.fixture
def store_settings(valkey_url: str) -> StoreSettings:
    prefix = f"test-{uuid.uuid4().hex[:8]}"
    return StoreSettings(redis_url=valkey_url, key_prefix=prefix, accept_without_worker=True)


@pytest.fixture
def admin(make_key: Callable[..., str]) -> dict[str, str]:
    return bearer(make_key("admin,submit,read"))


def gateway_of(settings: StoreSettings) -> TestClient:
    return TestClient(create_app(GatewaySettings(), settings), "http://127.0.0.1")


def queued(gateway: TestClient, key: dict[str, str]) -> dict[str, float]:
    """Normal jobs that wait, by model, as Prometheus is told."""
    text = gateway.get("/metrics", headers=key).text
    found = re.findall(r'^cynosure_queue_jobs{model="([\w-]+)",priority="normal"} (\S+)$', text, re.MULTILINE)
    return {model: float(count) for model, count in found}


def test_jobs_wait_while_there_is_no_worker_and_are_drawn_by_the_next(
    store_settings: StoreSettings, admin: dict[str, str], raw: redis.Redis, small_pack: Path, tmp_path: Path
) -> None:
    address = {"REDIS_URL": store_settings.redis_url, "CYNOSURE_KEY_PREFIX": store_settings.key_prefix}
    worker = Process("worker", program("workers", "--models", str(small_pack)), clean_environment(**address), tmp_path)
    worker.start()
    try:
        with gateway_of(store_settings) as first:
            wait_until(lambda: first.get("/readyz").is_success, what="the worker serves")
            done = first.post("/generate", json=PICTURE, headers={**admin, "Prefer": "wait=60"})
            assert done.json()["status"] == "succeeded"
            assert first.get("/models/fashion", headers=admin).json()["served"]
        assert worker.stop() == 0
        with gateway_of(store_settings) as second:  # it has never seen a worker
            assert second.get("/readyz").json() == {"models": ["fashion"]}
            assert queued(second, admin) == {"fashion": 0}
            [card] = second.get("/models", headers=admin).json()["models"]
            assert (card["name"], card["served"]) == ("fashion", False)
            accepted = second.post("/generate", json=PICTURE, headers=admin)
            assert accepted.status_code == 202
            job = accepted.json()
            assert (job["queue_position"], job["eta_seconds"]) == (0, None), "though the pace is known"
            assert 0 < raw.ttl(f"{store_settings.key_prefix}:job:{job['id']}") <= store_settings.unfinished_ttl_s
            assert queued(second, admin) == {"fashion": 1}
            status = second.get("/status", headers=admin).json()
            assert (status["workers"], status["models"][0]["workers"], status["models"][0]["waiting"]) == (0, 0, 1)
            worker.start()
            ended = second.get(f"/jobs/{job['id']}", headers={**admin, "Prefer": "wait=60"})
            assert ended.json()["status"] == "succeeded"
            wait_until(lambda: queued(second, admin) == {"fashion": 0}, what="none waits")
            wait_until(
                lambda: second.get("/models/fashion", headers=admin).json()["served"],
                what="its card is looked up again",
            )
    finally:
        worker.stop()


def test_without_the_setting_they_are_refused_and_what_waits_is_still_told(
    store_settings: StoreSettings, admin: dict[str, str], card: ModelCard
) -> None:
    settings = store_settings.model_copy(update={"accept_without_worker": False})
    fleet = FleetRegistry(settings)
    fleet.publish("worker", [card])
    with gateway_of(settings) as first:
        assert first.post("/generate", json=PICTURE, headers=admin).status_code == 202
    fleet.withdraw("worker")
    with gateway_of(settings) as second:
        refused = second.post("/generate", json=PICTURE, headers=admin)
        assert (refused.status_code, refused.json()["code"]) == (503, "no_worker")
        assert second.get("/readyz").status_code == 503
        assert second.get("/readyz", params={"exclude": "workers"}).status_code == 200
        assert second.get("/models", headers=admin).json()["models"] == []
        assert queued(second, admin) == {"fashion": 1}
        fleet.publish("worker", [card.model_copy(update={"name": "another"})])
        wait_until(lambda: second.get("/readyz").is_success, what="another model is served")
        unknown = second.post("/generate", json={**PICTURE, "model": "fashion"}, headers=admin)
        assert (unknown.status_code, unknown.json()["code"]) == (422, "unknown_model")
        assert queued(second, admin) == {"another": 0, "fashion": 1}


def test_what_only_a_worker_can_check_is_accepted_unchecked(
    store_settings: StoreSettings, admin: dict[str, str], card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "_CHECK_S", 0.1)
    refusing = store_settings.model_copy(update={"accept_without_worker": False})
    uncertain, fleet = {**PICTURE, "steps": 20}, FleetRegistry(store_settings)
    fleet.publish("worker", [card.model_copy(update={"certain_steps": {"ddim": 10}})])  # and dies
    with gateway_of(store_settings) as gateway, gateway_of(refusing) as other:
        assert other.post("/generate", json=uncertain, headers=admin).json()["code"] == "no_worker"
        assert gateway.post("/generate", json=uncertain, headers=admin).status_code == 202
        fleet.withdraw("worker")
        wait_until(lambda: not gateway.get("/models/fashion", headers=admin).json()["served"], what="nobody serves it")
        monkeypatch.setattr(plans, "_CHECK_S", 0)  # for ever
        assert gateway.post("/generate", json=uncertain, headers=admin).status_code == 202
        assert gateway.post("/plan", json=PICTURE, headers=admin).json()["code"] == "no_worker"


def test_which_workers_are_there_does_not_change_the_default_model(
    store_settings: StoreSettings, admin: dict[str, str], card: ModelCard
) -> None:
    fleet = FleetRegistry(store_settings)
    for name in ("zoo", "ants"):
        fleet.publish(name, [card.model_copy(update={"name": name})])
    fleet.withdraw("ants")
    with gateway_of(store_settings) as gateway:
        models = gateway.get("/models", headers=admin).json()["models"]
        assert [(one["name"], one["served"]) for one in models] == [("ants", False), ("zoo", True)]
        assert gateway.post("/generate", json=PICTURE, headers=admin).json()["request"]["model"] == "ants"


def test_a_model_that_waits_for_a_worker_can_be_forgotten(
    store_settings: StoreSettings, admin: dict[str, str], card: ModelCard
) -> None:
    fleet = FleetRegistry(store_settings)
    fleet.publish("worker", [card])
    fleet.withdraw("worker")
    with gateway_of(store_settings) as gateway:

        def remove(jobs: str) -> tuple[int, str | None]:
            answer = gateway.delete("/admin/models/fashion", params={"jobs": jobs}, headers=admin)
            return answer.status_code, answer.json().get("code")

        assert [load["name"] for load in gateway.get("/admin/models", headers=admin).json()["models"]] == ["fashion"]
        job_id = gateway.post("/generate", json=PICTURE, headers=admin).json()["id"]
        assert remove("finish") == (422, "invalid_request")
        assert remove("refuse") == (422, "invalid_request")
        assert remove("wait") == (200, None)
        assert gateway.post("/generate", json=PICTURE, headers=admin).json()["code"] == "no_worker"
        assert queued(gateway, admin) == {"fashion": 1}
        assert gateway.delete(f"/jobs/{job_id}", headers=admin).json()["status"] == "cancelled"
        assert remove("finish") == (200, None)
        assert remove("finish") == (404, "model_not_found")
        fleet.publish("worker", [card])
        wait_until(lambda: gateway.get("/readyz").is_success, what="it is back")


def test_a_card_of_another_version_is_left_out(
    store_settings: StoreSettings, admin: dict[str, str], card: ModelCard, raw: redis.Redis
) -> None:
    fleet = FleetRegistry(store_settings)
    fleet.publish("worker", [card])
    raw.hset(f"{store_settings.key_prefix}:models:known", "old", '{"place": 0, "card": {"name": "old"}}')
    with gateway_of(store_settings) as gateway:
        assert [one["name"] for one in gateway.get("/models", headers=admin).json()["models"]] == ["fashion"]
        fleet.withdraw("worker")
        wait_until(
            lambda: not gateway.get("/models", headers=admin).json()["models"][0]["served"], what="nobody serves it"
        )
