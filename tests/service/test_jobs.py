"""One's own jobs: listed, made again, varied."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pytest
import redis
from fastapi.testclient import TestClient
from PIL import Image

from app.gateway.webhooks.signing import encoded_secret
from cynosure import Client, JobStatus, SweepRequest
from cynosure.contract import Job
from cynosure.errors import InvalidRequest, JobExpired, JobUnfinished
from cynosure.metadata import encoded_picture
from jobs.queue.worker import WorkerStore
from tests.conftest import bearer


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (28, 28)).save(buffer, "PNG")
    return buffer.getvalue()


PNG = _png()


def test_jobs_are_listed_newest_first_page_by_page_and_by_status(open_gateway: Callable[..., TestClient]) -> None:
    gateway = open_gateway()
    ids = [gateway.post("/generate", json={"class_label": 1, "seed": n}).json()["id"] for n in range(7)]
    for cancelled in ids[::3]:
        gateway.delete(f"/jobs/{cancelled}")
    seen, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        page = gateway.get("/jobs", params={"limit": 3} | ({"cursor": cursor} if cursor else {})).json()
        seen += [job["id"] for job in page["jobs"]]
        cursor, pages = page["next_cursor"], pages + 1
    assert sorted(seen) == sorted(ids)
    created = [gateway.get(f"/jobs/{job_id}").json()["created_at"] for job_id in seen]
    assert created == sorted(created, reverse=True)
    found = gateway.get("/jobs", params={"status": "cancelled"}).json()["jobs"]
    assert {job["id"] for job in found} == set(ids[::3])
    assert gateway.get("/jobs", params={"cursor": "nonsense"}).status_code == 422
    misspelt = gateway.get("/jobs", params={"state": "cancelled"})
    assert (misspelt.status_code, misspelt.json()["field"]) == (422, "state")
    assert "Did you mean 'status'" in misspelt.json()["detail"]


def test_a_poll_shows_the_whole_request_though_the_record_has_no_empty_fields(
    open_gateway: Callable[..., TestClient], worker_store: WorkerStore, raw: redis.Redis
) -> None:
    gateway = open_gateway()
    asked = {"class_label": 1, "num_images": 2, "guidance_interval": [0.2, 1]}
    made = gateway.post("/generate", json=asked).json()
    polled, record = gateway.get(f"/jobs/{made['id']}").json(), worker_store._keys.job(made["id"])
    assert polled == made
    assert polled["request"] == Job.model_validate(polled).request.model_dump(mode="json")
    assert b"null" not in raw.hget(record, "request")
    # A record of an earlier version: with its picture, and without what is newer.
    older = {**polled["request"], "init_image": encoded_picture(PNG), "strength": 0.5}
    raw.hset(record, "request", json.dumps(older))
    raw.hdel(record, "model")
    shown = gateway.get(f"/jobs/{made['id']}").json()
    assert (shown["request"]["init_image"], shown["queue_position"]) == (None, 0)
    assert shown["request"]["inputs"]["init_image"]["size"] == len(PNG)


def test_a_listing_tells_each_jobs_place(open_gateway: Callable[..., TestClient]) -> None:
    gateway = open_gateway()
    ids = [gateway.post("/generate", json={"class_label": 1}).json()["id"] for _ in range(4)]
    gateway.delete(f"/jobs/{ids[1]}")
    places = {job["id"]: job["queue_position"] for job in gateway.get("/jobs").json()["jobs"]}
    assert places == dict(zip(ids, (0, None, 1, 2), strict=True))


def test_a_listing_leaves_out_what_may_be_megabytes_and_what_is_no_longer_kept(
    open_gateway: Callable[..., TestClient], worker_store: WorkerStore
) -> None:
    gateway = open_gateway()
    kept, lost = (gateway.post("/generate", json={"class_label": 1}).json()["id"] for _ in range(2))
    worker_store._client.delete(worker_store._keys.job(lost))
    assert [job["id"] for job in gateway.get("/jobs").json()["jobs"]] == [kept]
    assert worker_store._client.zcard(worker_store._keys.owned("anonymous")) == 1


def test_what_is_erased_is_gone_with_its_pictures_and_is_drawn_anew(server_url: str) -> None:
    with Client(server_url) as client:
        done = client.wait(client.submit(class_label="bag", steps=2, seed=11).id)
        running = client.submit(class_label="bag", steps=1000, num_images=8)
        assert client.erase(done.id).status is JobStatus.SUCCEEDED
        assert client.erase(running.id).status is JobStatus.CANCELLED
        for job in (done, running):
            for call in (client.job, client.erase):
                with pytest.raises(JobExpired):
                    call(job.id)
        with pytest.raises(JobExpired):
            client.images(done)
        assert not {done.id, running.id} & {job.id for job in client.jobs().jobs}
        again = client.wait(client.submit(class_label="bag", steps=2, seed=11).id)
        assert (again.cached, again.images[0].sha256) == (False, done.images[0].sha256)


def test_a_retry_is_the_same_request_and_waits_for_the_first_to_end(server_url: str) -> None:
    with Client(server_url) as client:
        job = client.submit(class_label="bag", steps=1000, num_images=8, seed=4)
        with pytest.raises(JobUnfinished):
            client.retry(job.id)
        client.cancel(job.id)
        again = client.retry(job.id)
        assert (again.id != job.id, again.request) == (True, job.request)
        assert client.cancel(again.id).status is JobStatus.CANCELLED


def test_a_variation_differs_in_its_seed_alone(server_url: str) -> None:
    with Client(server_url) as client:
        job = client.wait(client.submit(class_label="bag", steps=4, num_images=2).id)
        other = client.wait(client.vary(job.id, num_images=1).id)
        assert other.request.model_copy(update={"seed": job.request.seed, "num_images": 2}) == job.request
        assert other.images[0].sha256 != job.images[0].sha256
        sweep = client.submit_sweep(SweepRequest(class_labels=(1, 2), seeds=(1, 2, 3)))
        varied = client.vary(sweep.id).request.sweep
        assert varied is not None
        assert len(set(varied.seeds) - {1, 2, 3}) == 3
        with pytest.raises(InvalidRequest):
            client.vary(sweep.id, num_images=2)


def test_an_idempotency_key_stands_for_the_variation_of_one_job(open_gateway: Callable[..., TestClient]) -> None:
    gateway, key = open_gateway(), {"Idempotency-Key": "k"}
    first, second = (gateway.post("/generate", json={"class_label": label}).json()["id"] for label in (1, 2))
    made = gateway.post(f"/jobs/{first}/vary", headers=key).json()
    assert gateway.post(f"/jobs/{first}/vary", headers=key).json()["id"] == made["id"]
    other = gateway.post(f"/jobs/{second}/vary", headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")


@pytest.mark.parametrize("action", ["retry", "vary"])
def test_a_job_is_not_made_again_with_a_webhook_that_could_not_be_told(
    open_gateway: Callable[..., TestClient], action: str
) -> None:
    telling, silent = open_gateway(webhook_secret=encoded_secret(bytes(32))), open_gateway()
    body = {"class_label": 1, "webhook_url": "https://hook.invalid/"}
    job_id = telling.post("/generate", json=body).json()["id"]
    telling.delete(f"/jobs/{job_id}")
    answer = silent.post(f"/jobs/{job_id}/{action}")
    assert (answer.status_code, answer.json().get("field")) == (422, "webhook_url")


def test_a_stranger_sees_none_of_it(
    open_gateway: Callable[..., TestClient],
    make_key: Callable[..., str],
) -> None:
    gateway = open_gateway(auth="required")
    mine, other = bearer(make_key()), bearer(make_key())
    job_id = gateway.post("/generate", json={"class_label": 1}, headers=mine).json()["id"]
    gateway.delete(f"/jobs/{job_id}", headers=mine)
    assert [job["id"] for job in gateway.get("/jobs", headers=mine).json()["jobs"]] == [job_id]
    assert gateway.get("/jobs", headers=other).json()["jobs"] == []
    for action in ("retry", "vary"):
        assert gateway.post(f"/jobs/{job_id}/{action}", headers=other).status_code == 404


def test_the_status_tells_the_pace_in_pictures(server_url: str) -> None:
    with Client(server_url) as client:
        client.wait(client.submit(class_label="bag", steps=2, num_images=4, use_cache=False).id)
        [fashion] = client.status().models
    assert fashion.pictures_per_second
    assert fashion.evaluations_per_second
    assert fashion.evaluations_per_second > fashion.pictures_per_second
