"""The main job over HTTP, against real parts: pictures in every mode, and a clear refusal for every bad request."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
import numpy as np
import pytest
from httpx_sse import connect_sse
from PIL import Image

from cynosure.client import Client
from cynosure.contract import GenerateRequest, Job, JobStatus, Preview, Progress, SweepRequest
from cynosure.errors import IdempotencyConflict, InvalidRequest, JobNotFound, UnknownLabel

MODES: list[dict[str, Any]] = [
    {"guidance_mode": "none"},
    {"guidance_mode": "classifier_free", "scale": 3},
    {"guidance_mode": "classifier", "scale": 5, "classifier_base": "unconditional"},
    {"guidance_mode": "combined", "scale": 2, "classifier_scale": 3},
]
REFUSALS: list[tuple[str, int, str, str | None]] = [
    ('{"class_label": "sneker"}', 422, "unknown_label", "class_label"),
    ('{"class_label": 10}', 422, "unknown_label", "class_label"),
    ('{"colour": 1}', 422, "unknown_field", "colour"),
    ('{"prompt": "a shoe"}', 422, "unsupported_field", "prompt"),
    ('{"class_label": 1, "scale": 101}', 422, "invalid_request", "scale"),
    ('{"class_label": 1, "scale": NaN}', 400, "malformed_body", None),
    ('{"class_label": 1, "steps": 0}', 422, "invalid_request", "steps"),
    ('{"class_label": 1, "steps": 100000}', 422, "invalid_request", "steps"),
    (
        '{"class_label": 1, "sampler": "dpmpp_2m", "sigma_schedule": "karras", "steps": 20, "profile": "diffusers"}',
        422,
        "invalid_request",
        "sigma_schedule",
    ),
    ('{"class_label": 1, "sampler": "dimm"}', 422, "unknown_sampler", "sampler"),
    ('{"class_label": 1, "guidance_rule": "cfg++", "sampler": "heun"}', 422, "unsupported_field", "guidance_rule"),
    ('{"guidance_mode": "classifier_free"}', 422, "invalid_request", "class_label"),
    ('{"model": "nope"}', 422, "unknown_model", "model"),
    ('{"class_label": 1, "webhook_url": "https://10.0.0.1/"}', 422, "invalid_request", "webhook_url"),
    ("{bad", 400, "malformed_body", None),
    ("[]", 400, "malformed_body", None),
]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["guidance_mode"])
def test_one_post_gives_a_picture_in_every_mode(server_url: str, mode: dict[str, Any]) -> None:
    body = {"class_label": "sneaker", "steps": 8, "seed": 5, "use_cache": False, **mode}
    headers = {"Accept": "image/png"}
    first = httpx.post(f"{server_url}/generate", json=body, headers=headers, timeout=120)
    assert first.status_code == 200, first.text
    assert Image.open(io.BytesIO(first.content)).size == (28, 28)
    again = httpx.post(f"{server_url}/generate", json=body, headers=headers, timeout=120)
    assert again.content == first.content


@pytest.mark.parametrize(("body", "status", "code", "field"), REFUSALS, ids=lambda value: str(value)[:30])
def test_a_bad_request_is_refused_by_field(
    server_url: str, body: str, status: int, code: str, field: str | None
) -> None:
    answer = httpx.post(f"{server_url}/generate", content=body, headers={"Content-Type": "application/json"})
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem.get("field")) == (status, code, field)


def test_a_body_over_the_limit_is_refused(server_url: str) -> None:
    answer = httpx.post(f"{server_url}/generate", content=b" " * (21 * 1024 * 1024), timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_a_job_is_polled_to_its_pictures_and_an_unknown_one_is_404(server_url: str) -> None:
    with Client(server_url) as client:
        pictures = client.generate(class_label=8, steps=4, num_images=3)
        assert len({picture.tobytes() for picture in pictures}) == 3
        with pytest.raises(JobNotFound):
            client.job("nope")
        with pytest.raises(UnknownLabel, match="Did you mean 'sneaker'") as refusal:
            client.submit(GenerateRequest(class_label="sneker"))
        assert refusal.value.field == "class_label"


def test_an_identical_seeded_request_is_answered_from_the_cache_unless_told_not_to(server_url: str) -> None:
    body = {"class_label": "bag", "steps": 5, "seed": 77}
    wait = {"Prefer": "wait=60"}
    first, second = (httpx.post(f"{server_url}/generate", json=body, headers=wait, timeout=90).json() for _ in range(2))
    fresh = httpx.post(f"{server_url}/generate", json={**body, "use_cache": False}, headers=wait, timeout=90).json()
    assert [job["cached"] for job in (first, second, fresh)] == [False, True, False]
    assert first["reproducible"] is True
    assert len({job["images"][0]["sha256"] for job in (first, second, fresh)}) == 1
    assert len({job["id"] for job in (first, second, fresh)}) == 3


def test_a_sweep_that_was_drawn_without_telemetry_is_drawn_again_for_it(server_url: str) -> None:
    asked = SweepRequest(request=GenerateRequest(class_label=3, steps=3), seeds=(71, 72))
    with Client(server_url) as client:
        assert client.wait(client.submit_sweep(asked).id).telemetry is None
        noted = asked.model_copy(update={"request": asked.request.model_copy(update={"telemetry": True})})
        telemetry = client.wait(client.submit_sweep(noted).id).telemetry
    assert telemetry is not None
    assert [len(steps) for steps in telemetry] == [3, 3]


def test_a_sweep_is_one_job_whose_pictures_are_those_of_single_requests(server_url: str) -> None:
    shared = GenerateRequest(guidance_mode="classifier_free", guidance_interval=(0.5, 1.0), steps=8)
    asked = SweepRequest(request=shared, class_labels=("sneaker", "bag"), guidance_scales=(1.5, 3.0, 6.0), seeds=(1, 2))
    with Client(server_url) as client:
        job = client.wait(client.submit_sweep(asked).id)
        assert (len(job.images), [image.seed for image in job.images]) == (12, [1, 2] * 6)
        assert Image.open(io.BytesIO(client.sheet(job.id))).height > 4 * 56
        alone = shared.model_copy(update={"class_label": "bag", "guidance_scale": 3.0, "seed": 2})
        single = client.wait(client.submit(alone, use_cache=False).id)
        assert client.image(single.id) == client.image(job.id, 6 + 2 + 1)
        with pytest.raises(InvalidRequest, match="leave guidance_scale out") as refusal:
            client.submit_sweep(asked.model_copy(update={"request": GenerateRequest(guidance_scale=2.0)}))
        assert refusal.value.field == "guidance_scales"


def test_a_cancelled_job_stays_cancelled_and_a_key_makes_one_job(server_url: str) -> None:
    with Client(server_url) as client:
        request = GenerateRequest(class_label=1, steps=1000, num_images=8, seed=1)
        job = client.submit(request, idempotency_key="once")
        assert client.submit(request, idempotency_key="once").id == job.id
        assert client.cancel(job.id).status == "cancelled"
        assert client.job(job.id).status == "cancelled"
        with pytest.raises(IdempotencyConflict):
            client.submit(GenerateRequest(class_label=2), idempotency_key="once")


def test_a_job_warns_of_what_its_plan_warns_of(server_url: str) -> None:
    with Client(server_url) as client:
        asked = {"class_label": "bag", "guidance_scale": 1, "steps": 4, "seed": 5, "num_images": 2}
        plan = client.plan(**asked)
        job = client.wait(client.submit(**asked).id)
        again = client.wait(client.submit(**asked).id)
        second = client.wait(client.submit(**{**asked, "num_images": 1, "first_image": job.images[1].first_image}).id)
        swept = SweepRequest(request=GenerateRequest(class_label="bag", steps=4), guidance_scales=(0.5, 1))
        sweep = client.wait(client.submit_sweep(swept).id)
        wrong = client.wait(client.submit_sweep(swept.model_copy(update={"request": EMPTY})).id)
    assert second.images[0].sha256 == job.images[1].sha256
    assert plan.warnings == job.warnings == again.warnings
    assert again.cached
    assert "guidance_scale 1 is plain conditional sampling" in job.warnings[0]
    assert sweep.warnings == ()
    assert wrong.warnings == ("No evaluation lies in guidance_interval: nothing is guided.",)


EMPTY = GenerateRequest(class_label="bag", steps=4, guidance_interval=(0.5, 0.5))


def test_a_plan_says_what_a_request_would_take(server_url: str) -> None:
    request = GenerateRequest(
        class_label="bag",
        guidance_mode="combined",
        guidance_scale=3,
        classifier_scale=2,
        guidance_interval=(0.5, 1.0),
        sampler="ddim",
        steps=10,
        num_images=2,
    )
    with Client(server_url) as client:
        plan = client.plan(request)
        empty = client.plan(request.model_copy(update={"guidance_interval": (0.5, 0.5)}))
        with pytest.raises(InvalidRequest, match="No model 'nothing' here"):
            client.plan(GenerateRequest(class_label=1, guide_model="nothing"))
    assert len(plan.timesteps) == len(plan.sigmas) == 10
    assert list(plan.sigmas) == sorted(plan.sigmas, reverse=True)
    assert plan.guided_evaluations == 5
    assert (plan.rows.denoiser, plan.rows.classifier) == (2 * (5 + 2 * 5), 2 * 5)
    assert plan.flop is not None
    assert plan.flop > 0
    assert plan.seconds is not None
    assert plan.seconds > 0
    assert plan.warnings == ()
    assert empty.rows.classifier == 0
    assert "interval" in empty.warnings[0]


def test_a_job_is_followed_by_its_events(server_url: str) -> None:
    asked = GenerateRequest(
        class_label="bag",
        guidance_mode="combined",
        guidance_scale=3,
        sampler="ddim",
        steps=60,
        num_images=2,
        seed=11,
        preview_every=20,
        telemetry=True,
    )
    with Client(server_url) as client:
        job = client.submit(asked)
        first, *happened, last = client.stream(job.id)
        assert isinstance(first, Job)
        assert isinstance(last, Job)
        assert last.status is JobStatus.SUCCEEDED
        previews = [event for event in happened if isinstance(event, Preview)]
        assert sorted((preview.image, preview.evaluations_done) for preview in previews) == [
            (image, step) for image in (0, 1) for step in (20, 40, 60)
        ]
        final = {preview.image: preview for preview in previews if preview.evaluations_done == 60}
        for index, preview in final.items():
            drawn = np.asarray(Image.open(io.BytesIO(client.image(job.id, index)))).astype(int)
            seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(preview.png)))).astype(int)
            assert np.abs(drawn - seen).mean() < 1, "the last prediction is the picture, but for a last trace of noise"
        steps = [event.evaluations_done for event in happened if isinstance(event, Progress)]
        assert steps == sorted(steps)
        assert steps[-1] == 120
        assert last.telemetry is not None
        noted = [note for event in happened if isinstance(event, Progress) for note in event.telemetry]
        for index, whole in enumerate(last.telemetry):
            mine = sorted((note for note in noted if note["image"] == index), key=lambda note: note["evaluation"])
            assert [{**note} for note in mine] == [
                {"image": index, "evaluation": number, **note} for number, note in enumerate(whole)
            ]
        with pytest.raises(JobNotFound):
            next(client.stream("AAAAAAAAAAAAAAAAAAAAAA"))


def test_a_follower_who_was_cut_off_goes_on_where_it_was(server_url: str) -> None:
    with Client(server_url) as client:
        job = client.submit(GenerateRequest(class_label="bag", steps=50, seed=12, preview_every=10))
        client.wait(job.id)

        def events(after: str) -> list[tuple[str, str]]:
            headers = {"Last-Event-ID": after} if after else {}
            with connect_sse(client._http, "GET", f"/jobs/{job.id}/events", headers=headers) as source:
                return [(event.id, event.event) for event in source.iter_sse()]

        whole = events("")
        assert [name for _, name in whole if name == "preview"] == ["preview"] * 5
        cut = next(number for number, (_, name) in enumerate(whole) if name == "preview")
        assert events(whole[cut][0]) == whole[cut + 1 :]
        assert events("no such id") == whole
