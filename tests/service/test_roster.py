"""Models come and go while a worker serves: a gateway, a real worker, a real store."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from app.commands.keys import command as keys
from app.gateway.settings import GatewaySettings
from app.main import create_app
from cynosure.programs import program
from harness.processes import Process, clean_environment, wait_until
from jobs.settings import StoreSettings

WAIT = {"Prefer": "wait=60"}
PICTURE = {"class_label": 1, "seed": 3, "steps": 2, "use_cache": False}


@dataclass
class Service:
    """A gateway of this process, with a key of the scope admin, and a worker with one model of its own, `fashion`."""

    http: TestClient
    worker: Process
    root: Path

    def add(self, model: str, **headers: str) -> httpx.Response:
        return self.http.post("/admin/models", json={"model": model}, headers=headers or WAIT)

    def remove(self, name: str, jobs: str = "finish", **headers: str) -> httpx.Response:
        return self.http.delete(f"/admin/models/{name}", params={"jobs": jobs}, headers=headers or WAIT)

    def submit(self, model: str, **asked: Any) -> str:
        answer = self.http.post("/generate", json={**PICTURE, "model": model, **asked})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def ended(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self.http.get(f"/jobs/{job_id}", headers=WAIT).json()
        return job

    def picture(self, job_id: str) -> bytes:
        assert self.ended(job_id)["status"] == "succeeded"
        return bytes(self.http.get(f"/jobs/{job_id}/images/0.png").content)

    def names(self) -> set[str]:
        return {load["name"] for load in self.http.get("/admin/models", headers=WAIT).json()["models"]}


@pytest.fixture(scope="module")
def service(valkey_url: str, small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("roster")
    root = folder / "root"
    shutil.copytree(small_pack, root / "tiny")
    shutil.copytree(small_pack, folder / "outside")
    (root / "link").symlink_to(folder / "outside")
    broken = shutil.copytree(small_pack, root / "broken")
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 9)
    store = StoreSettings(redis_url=valkey_url, key_prefix=f"test-{uuid.uuid4().hex[:8]}")
    address = {"REDIS_URL": valkey_url, "CYNOSURE_KEY_PREFIX": store.key_prefix}
    made = CliRunner().invoke(
        keys, ["create", "--name", "t", "--scopes", "admin", "--requests-per-s", "0"], env=address
    )
    worker = Process(
        "worker",
        program("workers", "--models", str(small_pack)),
        clean_environment(**address, CYNOSURE_MODELS_ROOT=str(root), CYNOSURE_WORKER_CONCURRENCY="4"),
        folder,
    )
    worker.start()
    headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
    try:
        with TestClient(create_app(GatewaySettings(auth="off"), store), "http://127.0.0.1", headers=headers) as http:
            wait_until(lambda: http.get("/readyz").is_success, what="the worker serves")
            service = Service(http, worker, root)
            wait_until(lambda: service.names() == {"fashion"}, what="the worker says what it has loaded")
            yield service
    finally:
        assert worker.stop() == 0
        assert "Traceback" not in worker.log.read_text()


@pytest.fixture
def tiny(service: Service) -> Iterator[str]:
    """A model that is loaded for the test."""
    assert service.add("tiny").status_code == 200
    yield "tiny"
    service.remove("tiny", "refuse")
    wait_until(lambda: service.names() == {"fashion"}, what="the model is unloaded")


def test_models_come_and_go_and_the_jobs_of_others_have_the_same_bytes(service: Service) -> None:
    alone = service.picture(service.submit("fashion"))
    for _ in range(2):
        others = [service.submit("fashion") for _ in range(8)]
        added = service.add("tiny")
        assert added.status_code == 200
        assert [at["state"] for at in added.json()["workers"]] == ["serving"]
        assert service.http.get("/models/tiny").json()["name"] == "tiny"
        own = service.picture(service.submit("tiny"))
        others += [service.submit("fashion") for _ in range(8)]
        assert service.remove("tiny").status_code == 200
        assert service.http.get("/models/tiny").status_code == 404
        assert {service.picture(job_id) for job_id in others} == {alone}
        assert own != alone  # its metadata names another model


def test_a_model_that_goes_finishes_its_jobs_and_those_of_its_batches_and_takes_no_new_ones(
    service: Service, tiny: str
) -> None:
    lines = "\n".join(json.dumps({**PICTURE, "model": tiny, "seed": seed}) for seed in range(100))
    batch = service.http.post("/batches", content=lines, headers={"Content-Type": "application/x-ndjson"}).json()
    guided = service.submit("fashion", steps=200, guide_model=tiny)
    jobs = [service.submit(tiny, steps=100) for _ in range(4)]
    removed = service.remove(tiny, Prefer="return=minimal")
    assert removed.status_code == 202
    assert removed.json()["jobs"] == "finish"
    assert service.http.get(f"/batches/{batch['id']}").json()["counts"]["succeeded"] < 100
    refused = service.http.post("/generate", json={**PICTURE, "model": tiny})
    assert refused.json()["code"] in {"model_leaving", "unknown_model"}
    assert service.add(tiny).json()["code"] == "model_exists"
    assert {service.ended(job_id)["status"] for job_id in [*jobs, guided]} == {"succeeded"}
    wait_until(lambda: service.names() == {"fashion"}, what="the model is unloaded")
    assert service.http.get(f"/batches/{batch['id']}").json()["counts"]["succeeded"] == 100


def test_jobs_of_a_model_that_goes_wait_until_it_is_back(service: Service, tiny: str) -> None:
    jobs = [service.submit(tiny, steps=100) for _ in range(20)]
    assert service.remove(tiny, "wait").status_code == 200
    waiting = [job_id for job_id in jobs if service.http.get(f"/jobs/{job_id}").json()["status"] == "queued"]
    assert waiting
    assert service.add(tiny).status_code == 200
    assert {service.ended(job_id)["status"] for job_id in jobs} == {"succeeded"}


def test_jobs_of_a_model_that_goes_are_refused_if_that_was_asked(service: Service, tiny: str) -> None:
    jobs = [service.submit(tiny, steps=100) for _ in range(20)]
    assert service.remove(tiny, "refuse").status_code == 200
    ended = [service.ended(job_id) for job_id in jobs]
    refused = [job for job in ended if job["status"] == "failed"]
    assert refused
    assert {job["error"]["code"] for job in refused} == {"model_removed"}
    assert all(job["status"] == "succeeded" for job in ended if job not in refused)


@pytest.mark.parametrize(
    ("model", "code", "told"),
    [
        ("fashion", "model_exists", "NAME=fashion"),
        ("tiney", "model_not_loaded", "Did you mean 'tiny'?"),
        ("../outside", "model_not_loaded", "outside CYNOSURE_MODELS_ROOT"),
        ("link", "model_not_loaded", "outside CYNOSURE_MODELS_ROOT"),
        ("unet=tiny/unet", "model_not_loaded", "no model_index.json"),
        ("file=tiny/model_index.json", "model_not_loaded", "cynosure import"),
        ("broken", "model_not_loaded", "can't be loaded as UNet2DModel"),
        ("owner/name@" + "0" * 40, "model_not_loaded", "CYNOSURE_MODELS_HUB"),
        ("no name=tiny", "invalid_request", "NAME=FOLDER"),
        ("..", "invalid_request", "NAME=FOLDER"),
    ],
)
def test_what_can_not_be_loaded_is_refused_with_the_reason_and_leaves_nothing(
    service: Service, model: str, code: str, told: str
) -> None:
    refused = service.add(model)
    assert refused.json()["code"] == code
    assert told in refused.json()["detail"]
    assert not refused.json()["detail"].endswith("..")
    assert service.names() == {"fashion"}


def test_a_failure_nobody_waited_for_is_shown_until_it_is_deleted(service: Service) -> None:
    assert service.add("broken", Prefer="return=minimal").status_code == 202
    [load] = [one for one in service.http.get("/admin/models", headers=WAIT).json()["models"] if one["model"]]
    assert load["workers"][0]["state"] == "failed"
    assert "UNet2DModel" in load["workers"][0]["reason"]
    assert service.remove("broken").status_code == 200
    assert service.names() == {"fashion"}


def test_a_worker_keeps_its_own_models_and_names_that_are_unknown_are_told(service: Service) -> None:
    pinned = service.remove("fashion")
    assert (pinned.status_code, pinned.json()["code"]) == (409, "model_pinned")
    unknown = service.remove("fashio")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "model_not_found")
    assert "Did you mean 'fashion'?" in unknown.json()["detail"]


def test_models_are_loaded_and_unloaded_only_with_a_key_of_the_scope_admin(service: Service) -> None:
    for call in (("GET", "/admin/models"), ("DELETE", "/admin/models/fashion"), ("POST", "/admin/models")):
        refused = service.http.request(*call, json={"model": "tiny"}, headers={"Authorization": ""})
        assert refused.status_code in {401, 403}, call


def test_a_worker_that_starts_again_loads_what_is_wanted(service: Service, tiny: str) -> None:
    service.worker.kill()
    waiting = service.submit(tiny)
    service.worker.start()
    assert service.ended(waiting)["status"] == "succeeded"
