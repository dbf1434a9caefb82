"""Several models behind one door: which one a request that names none goes to."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from app.gateway.settings import GatewaySettings
from app.gateway.state import State
from app.gateway.submission import cache_key
from app.main import create_app
from cynosure.contract import GenerateRequest, ModelCard, Sizes
from cynosure.metadata import encoded_picture, png_bytes
from cynosure.resolving import resolve, result_key
from harness.processes import wait_until
from jobs.fleet import Fleet, FleetRegistry
from jobs.settings import StoreSettings


@pytest.mark.parametrize(
    ("path", "body", "model"),
    [
        ("/generate", {"class_label": "sneaker"}, "fashion"),
        ("/generate", {}, "fashion"),
        ("/generate", {"prompt": "a happy cat"}, "emoji"),
        ("/generate", {"prompt": "a happy cat", "class_label": "noto"}, "emoji"),
        ("/generate", {"class_label": "noto", "model": "emoji"}, "emoji"),
        ("/generate", {"class_label": "noto"}, "emoji"),
        ("/generate", {"prompt": "a happy cat", "model": "dall-e-3"}, "emoji"),
        ("/sweeps", {"class_labels": [0, 1], "request": {}}, "fashion"),
        ("/sweeps", {"class_labels": ["noto", "fluent"], "request": {}}, "emoji"),
        ("/sweeps", {"seeds": [1, 2], "request": {"class_label": 0, "model": "dall-e-3"}}, "emoji"),
        ("/sweeps", {"prompts": ["cat", "dog"], "request": {}}, "emoji"),
        ("/sweeps", {"seeds": [1, 2], "request": {"prompt": "a happy cat"}}, "emoji"),
    ],
    ids=json.dumps,
)
def test_a_prompt_goes_to_the_model_that_takes_it(
    open_gateway: Callable[..., TestClient],
    store_settings: StoreSettings,
    emoji: ModelCard,
    path: str,
    body: dict[str, Any],
    model: str,
) -> None:
    FleetRegistry(store_settings).publish("second", [emoji])
    answer = open_gateway(auth="off", model_aliases=ALIASES).post(path, json=body)
    assert answer.status_code == 202, answer.text
    assert answer.json()["request"]["model"] == model


@pytest.mark.parametrize(
    ("path", "wrap", "field"),
    [
        ("/generate", lambda request: request, "height"),
        ("/sweeps", lambda request: {"request": request, "seeds": [1, 2]}, "request.height"),
        ("/batches", lambda request: [request], "height"),
    ],
    ids=["generate", "sweeps", "batches"],
)
def test_sizes_are_those_of_the_model(
    open_gateway: Callable[..., TestClient],
    store_settings: StoreSettings,
    emoji: ModelCard,
    path: str,
    wrap: Callable[[dict[str, Any]], Any],
    field: str,
) -> None:
    sizes = Sizes(default=(512, 512), multiple_of=8, min_side=128, max_side=2048, max_pixels=2**21)
    FleetRegistry(store_settings).publish("second", [emoji.model_copy(update={"sizes": sizes})])
    gateway = open_gateway(auth="off")
    asked = {"prompt": "a cat", "width": 512, "height": 768}
    answer = gateway.post(path, json=wrap(asked))
    assert answer.status_code == 202, answer.text
    if path != "/batches":
        assert (answer.json()["request"]["width"], answer.json()["request"]["height"]) == (512, 768)
    refusal = gateway.post(path, json=wrap(asked | {"height": 7}))
    assert refusal.status_code == 422
    assert "nearest that it can is width 512, height 128" in refusal.text
    assert field in refusal.text


@pytest.mark.parametrize(
    ("workers", "order"),
    [
        ([["zoo", "bags", "ants"]], ["zoo", "bags", "ants"]),
        ([["zoo", "bags"], ["zoo", "bags", "ants"]], ["zoo", "bags", "ants"]),
        ([["ants", "zoo"], ["zoo", "bags"]], ["ants", "zoo", "bags"]),
        ([["zoo", "bags"], ["bags", "zoo"]], ["bags", "zoo"]),
    ],
    ids=json.dumps,
)
def test_models_have_the_order_in_which_workers_name_them(
    store_settings: StoreSettings, card: ModelCard, workers: list[list[str]], order: list[str]
) -> None:
    """Which worker registered first, or has the first name, makes no difference."""
    named = {name: card.model_copy(update={"name": name}) for name in order}
    for registered in (workers, workers[::-1]):
        fleet = FleetRegistry(store_settings)
        for number, models in enumerate(registered):
            fleet.publish(f"w{number}", [named[name] for name in models])
        with TestClient(create_app(GatewaySettings(auth="off"), store_settings)) as gateway:
            assert [model["name"] for model in gateway.get("/models").json()["models"]] == order
            assert gateway.post("/generate", json={"class_label": 1}).json()["request"]["model"] == order[0]


ASTRAY = {"class_label": "sneaker", "prompt": "red"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", ASTRAY),
        ("/plan", ASTRAY),
        ("/sweeps", {"class_labels": ["sneaker", "noto"], "request": {"prompt": "red"}}),
        ("/batches", [ASTRAY]),
        ("/v1/images/generations", ASTRAY),
    ],
)
def test_a_label_of_another_model_than_the_prompts_is_refused_with_that_model(
    open_gateway: Callable[..., TestClient], store_settings: StoreSettings, emoji: ModelCard, path: str, body: Any
) -> None:
    FleetRegistry(store_settings).publish("second", [emoji])
    problem = open_gateway(auth="off").post(path, json=body).json()
    assert "'emoji' was chosen because of prompt; 'fashion' has that class: set model to 'fashion'" in (
        problem["error"]["message"] if "error" in problem else problem["detail"]
    )


ALIASES = {"dall-e-3": "emoji", "fashion": "emoji", "sdxl": "not-served"}


def test_aliases_stand_for_models_that_are_served(
    open_gateway: Callable[..., TestClient], store_settings: StoreSettings, emoji: ModelCard
) -> None:
    FleetRegistry(store_settings).publish("second", [emoji])
    gateway = open_gateway(auth="off", model_aliases=ALIASES)
    assert [model["id"] for model in gateway.get("/v1/models").json()["data"]] == ["emoji", "fashion", "dall-e-3"]
    assert gateway.get("/v1/models/dall-e-3").json()["id"] == gateway.get("/models/dall-e-3").json()["name"] == "emoji"
    assert gateway.get("/models/fashion").json()["name"] == "fashion"
    assert [card["name"] for card in gateway.get("/models").json()["models"]] == ["emoji", "fashion"]
    assert gateway.get("/v1/models/sdxl").status_code == 404
    for field in ("model", "guide_model"):
        problem = gateway.post("/generate", json={"class_label": 0, field: "sdxl"}).json()
        assert (problem["code"], problem["field"]) == ("unknown_model", field)
        assert problem["detail"].startswith("No model 'not-served' here, of which 'sdxl' is an alias. Known: emoji, ")
    assert "dall-e-3" in gateway.post("/generate", json={"model": "dall-e-2"}).json()["detail"]
    assert model_drawn_by(gateway, {"prompt": "a cat", "model": "dall-e-3", "style": "vivid"}) == "emoji"


def model_drawn_by(gateway: TestClient, body: dict[str, Any]) -> str:
    """The model of the job that an OpenAI client's request makes; nobody draws it."""
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(gateway.post, "/v1/images/generations", json=body)
        wait_until(lambda: asking.done() or gateway.get("/jobs").json()["jobs"], what="the job is accepted")
        gateway.portal.call(gateway.app_state["store"].news.hang_up)  # type: ignore[union-attr]
        answer = asking.result(timeout=60)
    assert answer.json()["error"]["code"] == "shutting_down", answer.text
    [job] = gateway.get("/jobs").json()["jobs"]
    return str(job["request"]["model"])


@pytest.mark.parametrize(
    ("others", "body", "model"),
    [
        ({"emoji": True}, {"prompt": "a happy cat"}, "emoji"),
        ({"emoji": True}, {"prompt": "sneaker"}, "emoji"),
        ({"emoji": True}, {"prompt": "sneaker", "model": "fashion"}, "fashion"),
        ({"another": False}, {"prompt": "sneaker"}, "another"),
        ({"zoo": True, "another": False}, {"prompt": "sneaker"}, "zoo"),
    ],
    ids=json.dumps,
)
def test_openai_clients_get_the_first_model_for_prompts_or_else_the_first(
    open_gateway: Callable[..., TestClient],
    store_settings: StoreSettings,
    card: ModelCard,
    others: dict[str, bool],
    body: dict[str, Any],
    model: str,
) -> None:
    cards = [card.model_copy(update={"name": name, "takes_prompt": takes}) for name, takes in others.items()]
    FleetRegistry(store_settings).publish("second", cards)
    assert model_drawn_by(open_gateway(auth="off"), body) == model


def test_a_model_that_comes_meanwhile_takes_no_request_that_was_read_for_another(
    open_gateway: Callable[..., TestClient], card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = card.model_copy(update={"name": "another", "labels": ("cat", "sneaker", "dog")})
    looks = iter([{"fashion": card}])

    async def cards(fleet: Fleet) -> dict[str, ModelCard]:
        return next(looks, {"another": late, "fashion": card})

    monkeypatch.setattr(Fleet, "cards", cards)
    assert model_drawn_by(open_gateway(auth="off"), {"prompt": "sneaker"}) == "fashion"


def test_a_picture_goes_to_the_model_that_made_it(
    open_gateway: Callable[..., TestClient], store_settings: StoreSettings, card: ModelCard
) -> None:
    prompted = card.model_copy(update={"name": "emoji", "takes_prompt": True})
    FleetRegistry(store_settings).publish("second", [prompted])
    made = resolve(GenerateRequest(class_label="sneaker"), card, seed=1)
    picture = encoded_picture(png_bytes(Image.new("L", (28, 28)), made, 0, card))
    body = {"prompt": "trouser", "from_image": picture}
    assert model_drawn_by(open_gateway(auth="off"), body) == "fashion"


def test_the_only_model_gets_every_request_and_says_what_it_lacks(open_gateway: Callable[..., TestClient]) -> None:
    answer = open_gateway(auth="off").post("/generate", json={"prompt": "a happy cat"})
    assert (answer.status_code, answer.json()["field"]) == (422, "prompt")


@pytest.mark.anyio
async def test_a_result_is_kept_under_the_weights_of_model_and_guide(
    store_settings: StoreSettings, card: ModelCard
) -> None:
    guide = card.model_copy(update={"name": "small", "digest": "another"})
    asked = GenerateRequest(class_label=1, guidance_mode="classifier_free", guide_model="small")
    request = resolve(asked, card, seed=1)
    shown = request.model_dump(mode="json")
    found: list[str | None] = []
    for cards in ([card], [card, guide]):
        FleetRegistry(store_settings).publish("w", cards)
        async with Fleet.connect(store_settings) as fleet:
            found.append(await cache_key(cast(State, {"store": SimpleNamespace(fleet=fleet)}), request, shown, card))
    assert found == [None, result_key(shown, card.drawn_by, guide.drawn_by)]
    exact = card.model_copy(update={"precision": "bfloat16"})
    assert exact.drawn_by != card.drawn_by, "another number format draws other bytes"


def test_the_status_counts_workers_and_all_that_waits(
    open_gateway: Callable[..., TestClient], store_settings: StoreSettings, card: ModelCard, emoji: ModelCard
) -> None:
    FleetRegistry(store_settings).publish("another", [card, emoji])
    gateway = open_gateway(auth="off")
    for priority in ("low", "high"):
        assert gateway.post("/generate", json={"class_label": 1, "priority": priority}).status_code == 202
    status = gateway.get("/status").json()
    assert (status["workers"], status["running"]) == (2, 0)
    assert status["models"] == [
        {
            "name": name,
            "workers": workers,
            "waiting": 2 * each,
            "waiting_by_priority": {"high": each, "normal": 0, "low": each, "back_off": 0, "suspect": 0},
            "pictures_per_second": None,
            "evaluations_per_second": None,
            "recent": None,
            "reviewed": False,
        }
        for name, workers, each in (("fashion", 2, 1), ("emoji", 1, 0))
    ]
    assert open_gateway(auth="required").get("/status").status_code == 401
