"""Several models behind one door: which one a request that names none goes to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.jobs.fleet import FleetRegistry
from app.jobs.settings import StoreSettings
from cynosure.contract import ModelCard


@pytest.mark.parametrize(
    ("path", "body", "model"),
    [
        ("/generate", {"class_label": "sneaker"}, "fashion"),
        ("/generate", {}, "fashion"),
        ("/generate", {"prompt": "a happy cat"}, "emoji"),
        ("/generate", {"prompt": "a happy cat", "class_label": "noto"}, "emoji"),
        ("/generate", {"class_label": "noto", "model": "emoji"}, "emoji"),
        ("/sweeps", {"class_labels": [0, 1], "request": {}}, "fashion"),
        ("/sweeps", {"prompts": ["cat", "dog"], "request": {}}, "emoji"),
        ("/sweeps", {"seeds": [1, 2], "request": {"prompt": "a happy cat"}}, "emoji"),
    ],
    ids=json.dumps,
)
def test_a_prompt_goes_to_the_model_that_takes_it(
    open_gateway: Callable[..., TestClient],
    store_settings: StoreSettings,
    card: ModelCard,
    path: str,
    body: dict[str, Any],
    model: str,
) -> None:
    prompted = card.model_copy(update={"name": "emoji", "takes_prompt": True, "labels": ("noto", "fluent")})
    FleetRegistry(store_settings).publish("second", [prompted])
    answer = open_gateway(auth="off").post(path, json=body)
    assert answer.status_code == 202, answer.text
    assert answer.json()["request"]["model"] == model


def test_the_only_model_gets_every_request_and_says_what_it_lacks(open_gateway: Callable[..., TestClient]) -> None:
    answer = open_gateway(auth="off").post("/generate", json={"prompt": "a happy cat"})
    assert (answer.status_code, answer.json()["field"]) == (422, "prompt")
