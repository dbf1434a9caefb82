"""Replicate's own client, pointed here."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from replicate.client import Client as ReplicateClient
from replicate.exceptions import ReplicateError
from replicate.webhook import Webhooks, WebhookSigningSecret

from cynosure import Client
from harness.processes import wait_until
from tests.conftest import bearer
from tests.service.test_webhooks import SETTINGS, Receiver, receiver

__all__ = ["receiver"]
QUICK: dict[str, Any] = {"prompt": "bag", "num_inference_steps": 3, "seed": 7}


@pytest.fixture(scope="module")
def client(server_url: str) -> Iterator[ReplicateClient]:
    client = ReplicateClient(api_token="none", base_url=server_url)
    yield client
    client._client.close()


def picture_at(url: str) -> Image.Image:
    return Image.open(io.BytesIO(httpx.get(url, trust_env=False).content))


@pytest.mark.parametrize("reference", ["cynosure/fashion", "anyone/fashion", "cynosure/fashion:{digest}"])
def test_a_model_is_run_by_its_name_with_and_without_its_version(
    client: ReplicateClient, server_url: str, reference: str
) -> None:
    with Client(server_url) as ours:
        [expected] = ours.generate(class_label="bag", steps=3, seed=7)
        [card] = ours.models()
    output = client.run(reference.format(digest=card.digest), input=QUICK)
    assert isinstance(output, list)
    assert [picture_at(url).tobytes() for url in output] == [expected.tobytes()]


def test_a_prediction_is_followed_and_cancelled_and_listed(client: ReplicateClient, server_url: str) -> None:
    version = client.models.get("cynosure/fashion").latest_version
    assert version is not None
    assert "num_inference_steps" in version.openapi_schema["components"]["schemas"]["Input"]["properties"]
    done = client.predictions.create(version, {**QUICK, "num_outputs": 2, "scheduler": "K_EULER"})
    long = client.predictions.create("fashion", {"prompt": "bag", "steps": 1000, "num_images": 8})
    assert long.status in {"starting", "processing"}
    long.cancel()
    assert long.status == "canceled"
    done.wait()
    assert (done.status, len(done.output or [])) == ("succeeded", 2)
    assert done.input is not None
    assert (done.input["sampler"], done.input["steps"]) == ("euler", 3)
    assert done.progress is not None
    assert done.progress.percentage == 1
    assert done.metrics is not None
    assert 0 < done.metrics["predict_time"] <= done.metrics["total_time"]
    listed = client.predictions.list()
    assert [one.id for one in listed.results[:2]] == [long.id, done.id]


def test_pictures_go_in_as_data(client: ReplicateClient, server_url: str) -> None:
    buffer = io.BytesIO()
    Image.new("L", (28, 28), 200).save(buffer, "PNG")
    buffer.name = "start.png"
    with Client(server_url) as ours:
        encoded = base64.b64encode(buffer.getvalue()).decode()
        [expected] = ours.generate(class_label="bag", steps=3, seed=7, init_image=encoded, strength=0.4)
    output = client.run(
        "cynosure/fashion", input={**QUICK, "image": buffer, "prompt_strength": 0.4}, file_encoding_strategy="base64"
    )
    assert isinstance(output, list)
    assert picture_at(output[0]).tobytes() == expected.tobytes()


def test_a_wait_that_is_too_short_leaves_the_client_polling(client: ReplicateClient) -> None:
    slow = client.predictions.create(
        "fashion", {"prompt": "bag", "steps": 1000, "num_images": 8, "use_cache": False}, wait=1
    )
    assert slow.status in {"starting", "succeeded"}
    slow.cancel()


@pytest.mark.parametrize(
    ("version", "what", "told"),
    [
        ("cynosure/shoes", {}, "shoes"),
        ("cynosure/fashion:" + "0" * 64, {}, "has the version"),
        ("fashion", {"num_inference_steps": 0}, "num_inference_steps"),
        ("fashion", {"num_infrence_steps": 3}, "num_inference_steps"),
        ("fashion", {"prompt": "bag", "guidance": 101}, "input.guidance must be at most 100"),
        ("fashion", {"prompt": "bag", "image": "no picture"}, "input.image must be"),
        ("fashion", {"prompt": "x" * 300}, "No class"),
        ("fashion", {"prompt": "begs"}, "bag"),
        ("fashion", {"prompt": "bag", "class_label": 1}, "not both"),
        ("fashion", {"prompt": "bag", "steps": 2, "num_inference_steps": 3}, "only one of them"),
        ("fashion", {"prompt": "bag", "num_outputs": 2, "num_images": 3}, "not both"),
        ("fashion", {"prompt": "bag", "scheduler": "K_EULR"}, "euler"),
        ("fashion", {"prompt": "bag", "image": "https://example.org/a.png"}, "image"),
    ],
)
def test_what_can_not_be_drawn_is_a_problem(
    client: ReplicateClient, version: str, what: dict[str, Any], told: str
) -> None:
    with pytest.raises(ReplicateError) as refused:
        client.predictions.create(version, what)
    assert refused.value.status == 422
    assert refused.value.detail is not None
    assert told in refused.value.detail


def test_a_webhook_is_sent_the_prediction(
    open_gateway: Callable[..., TestClient], make_key: Callable[..., str], receiver: Receiver
) -> None:
    gateway = open_gateway(auth="required", **SETTINGS)
    key = bearer(make_key())
    body = {"version": "fashion", "input": {"prompt": "sneaker"}, "webhook": receiver.url}
    refused = gateway.post("/v1/predictions", headers=key, json={**body, "webhook_events_filter": ["start"]})
    assert refused.json()["field"] == "webhook_events_filter"
    answer = gateway.post("/v1/predictions", headers=key, json={**body, "webhook_events_filter": ["completed"]})
    made = answer.json()
    assert answer.status_code == 201, made
    gateway.post(f"/v1/predictions/{made['id']}/cancel", headers=key)
    wait_until(lambda: len(receiver.told) > 0, what="the webhook is called")
    [(headers, sent)] = receiver.told
    prediction = json.loads(sent)
    assert (prediction["id"], prediction["status"]) == (made["id"], "canceled")
    secret = WebhookSigningSecret(**gateway.get("/v1/webhooks/default/secret", headers=key).json())
    Webhooks.validate(headers=headers, body=sent.decode(), secret=secret)


@pytest.mark.parametrize(("api", "path"), [("openai", "/v1/images/generations"), ("replicate", "/v1/predictions")])
def test_the_routes_can_be_left_out(open_gateway: Callable[..., TestClient], api: str, path: str) -> None:
    gateway = open_gateway(**{api: False})
    assert gateway.post(path, json={}).status_code == 404
    assert path not in gateway.get("/openapi.json").json()["paths"]
