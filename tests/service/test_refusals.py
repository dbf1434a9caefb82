"""What is said of a field that isn't there, or isn't right, wherever in the body it stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from cynosure.contract import JobError, LongPrompt, ModelCard, PromptSyntax
from jobs.fleet import FleetRegistry
from jobs.plans import InquiryDesk
from jobs.settings import StoreSettings

NESTED = {"classifier_condition": {"labelz": {"sneaker": 1}}}


@pytest.mark.parametrize(
    ("path", "body", "field", "suggestion"),
    [
        ("/generate", {"step": 3}, "step", "steps"),
        ("/generate", NESTED, "classifier_condition.labelz", "labels"),
        ("/sweeps", {"request": {"step": 3}, "seeds": [1, 2]}, "request.step", "steps"),
        ("/sweeps", {"request": NESTED, "seeds": [1, 2]}, "request.classifier_condition.labelz", "labels"),
        ("/sweeps", {"request": {}, "seed": [1, 2]}, "seed", "seeds"),
        ("/jobs/unknown/vary", {"num_image": 2}, "num_image", "num_images"),
        ("/batches", {"steps": 3, "custom": "a"}, "custom", "custom_id"),
        ("/batches", NESTED, "classifier_condition.labelz", "labels"),
    ],
    ids=json.dumps,
)
def test_a_misspelt_field_is_named_with_the_one_that_was_meant(
    open_gateway: Callable[..., TestClient], path: str, body: dict[str, Any], field: str, suggestion: str
) -> None:
    problem = open_gateway(auth="off").post(path, json=body).json()
    assert (problem["code"], problem["field"]) == ("unknown_field", field)
    assert f"Did you mean '{suggestion}'?" in problem["detail"]


@pytest.mark.parametrize("name", ["body", "outer.steps", "", "errors"])
def test_a_field_of_any_name_is_unknown(open_gateway: Callable[..., TestClient], name: str) -> None:
    problem = open_gateway(auth="off").post("/generate", json={name: 1}).json()
    assert (problem["code"], problem.get("field")) == ("unknown_field", name)


def test_only_fields_that_the_route_has_are_listed(open_gateway: Callable[..., TestClient]) -> None:
    problem = open_gateway(auth="off").post("/jobs/unknown/vary", json={"seed": 3}).json()
    assert problem["field"] == "seed"
    assert problem["detail"].endswith("Known: num_images.")


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"request": {"steps": 0}}, "request.steps", "must be at least 1"),
        ({"request": {"steps": 1.5}}, "request.steps", "must be a whole number"),
        ({"request": {"steps": True}}, "request.steps", "must be a whole number"),
        ({"request": {"guidance_interval": [False, 1]}}, "request.guidance_interval", "must be a number"),
        ({"request": {"class_label": []}}, "request.class_label", "must be a whole number or a string"),
        ({"request": {"class_label": "x" * 201}}, "request.class_label", "must have at most 200 characters"),
        ({"request": {"scale": 1000}}, "request.scale", "must be at most 100"),
        ({"request": {"guidance_interval": [1, 0]}}, "request.guidance_interval", "start must not be greater than"),
        ({"request": {"guidance_mode": "classifier-free"}}, "request.guidance_mode", "mean 'classifier_free'?)."),
        ({"request": {"original_size": "640x512"}}, "request.original_size", "must be a list, such as [512, 640]"),
        ({"request": {"timestep_respacing": "x"}}, "request.timestep_respacing", "must be like '250', '10,15,20'"),
        ({"request": {"webhook_url": "me"}}, "request.webhook_url", "must be a whole URL"),
        ({"request": []}, "request", "must be an object"),
        ({"seeds": [1, "x"]}, "seeds", "seeds[1] must be a whole number."),
        ({"seeds": [True]}, "seeds", "seeds[0] must be a whole number."),
        (
            {"request": {"classifier_condition": {"labels": {"bag": "x"}}}},
            "request.classifier_condition.labels",
            "labels['bag'] must be a number.",
        ),
        (
            {"request": {"classifier_condition": {"not": [1], "none_of": [2]}}},
            "request.classifier_condition.none_of",
            "Give none_of or not, and only one of them.",
        ),
    ],
    ids=json.dumps,
)
def test_a_value_that_is_wrong_is_told_by_its_field_and_what_it_must_be(
    open_gateway: Callable[..., TestClient], body: dict[str, Any], field: str, says: str
) -> None:
    problem = open_gateway(auth="off").post("/sweeps", json=body).json()
    assert (problem["code"], problem["field"]) == ("invalid_request", field)
    assert says in problem["detail"]


FROM_A1111 = {"batch_size": 3, "sampler_name": "Euler", "enable_hr": True, "step": 3}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", FROM_A1111),
        ("/plan", FROM_A1111),
        ("/sweeps", {"request": FROM_A1111}),
        ("/batches", [FROM_A1111]),
        ("/v1/images/generations", {"prompt": "bag", **FROM_A1111}),
    ],
)
def test_all_unknown_fields_are_named_at_once(
    open_gateway: Callable[..., TestClient], path: str, body: dict[str, Any]
) -> None:
    problem = open_gateway(auth="off").post(path, json=body).json()
    detail = problem["error"]["message"] if "error" in problem else problem["detail"]
    detail = detail.replace("request.", "").removeprefix("line 1: ")
    assert detail.startswith(
        "No fields 'batch_size' (here it is num_images), 'sampler_name' (here it is sampler), 'enable_hr', "
        "'step' (did you mean 'steps'?). Known: "
    )
    assert {"scale", "num_inference_steps"} <= set(detail.rstrip(".").partition("Known: ")[2].split(", "))
    if "errors" in problem:
        assert [one["field"].removeprefix("request.") for one in problem["errors"]] == list(FROM_A1111)


def test_wrong_values_and_unknown_fields_are_told_together(open_gateway: Callable[..., TestClient]) -> None:
    problem = open_gateway(auth="off").post("/sweeps", json={"steps": 0, "seeds": [-1], "prompts": 3}).json()
    assert (problem["code"], problem["field"]) == ("invalid_request", "prompts")
    assert [one["field"] for one in problem["errors"]] == ["prompts", "seeds", "steps"]
    assert (
        "prompts must be a list. seeds[0] must be at least 0. No field 'steps'. It belongs in request."
        in (problem["detail"])
    )


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"class_labels": ["sneker", "trouser"]}, "class_labels"),
        ({"seeds": [1, 2], "request": {"class_label": "sneker"}}, "request.class_label"),
        ({"seeds": [1, 2], "request": {"sampler": "eular"}}, "request.sampler"),
        ({"seeds": [1, 2], "request": {"num_images": 2}}, "request.num_images"),
        ({"seeds": [1, 2], "request": {"init_image": "aGk="}}, "request.init_image"),
        ({"seeds": [1, 1]}, "seeds"),
    ],
    ids=json.dumps,
)
def test_what_a_sweep_can_not_do_is_refused_by_the_field_in_the_sweep(
    open_gateway: Callable[..., TestClient], body: dict[str, Any], field: str
) -> None:
    assert open_gateway(auth="off").post("/sweeps", json=body).json()["field"] == field


def test_the_schema_has_every_name_that_a_field_is_read_by(open_gateway: Callable[..., TestClient]) -> None:
    schemas = open_gateway(auth="off").get("/openapi.json").json()["components"]["schemas"]
    for name in ("GenerateRequest", "BatchLine", "ImageParams"):
        assert {"scale", "guidance_scale", "steps", "num_inference_steps"} <= schemas[name]["properties"].keys()
    assert {"not", "none_of"} <= schemas["ClassifierCondition-Input"]["properties"].keys()
    assert "scale" not in schemas["ResolvedRequest"]["properties"]


@pytest.mark.parametrize(
    ("path", "kind", "body", "said"),
    [
        ("/generate", "application/json", b'{"class_label": "\xff"}', "byte 0xff at line 1, column 18"),
        ("/generate", "application/json", b'{"seed": 1' + b"0" * 5000 + b"}", "5001 digits"),
        ("/v1/images/generations", "application/json", b'{"prompt": "\xff"}', "byte 0xff at line 1, column 13"),
        ("/generate", "application/json", b'{"seed": 1, "seed": 2}', "has 'seed' twice"),
        ("/batches", "application/json", b'[{"seed": 1, "seed": 2}]', "line 1: this has 'seed' twice"),
        ("/v1/images/edits", "multipart/form-data", b"--x", "Missing boundary"),
        ("/v1/images/edits", "multipart/form-data; boundary=x", b"nonsense", "Invalid multipart data"),
    ],
    ids=["encoding", "number", "encoding, as OpenAI", "twice", "twice, in a batch", "boundary", "parts"],
)
def test_a_body_that_can_not_be_read_is_malformed_and_the_answer_says_where(
    open_gateway: Callable[..., TestClient], path: str, kind: str, body: bytes, said: str
) -> None:
    answer = open_gateway(auth="off").post(path, content=body, headers={"Content-Type": kind})
    assert answer.status_code == 400
    assert '"code":"malformed_body"' in answer.text
    assert said in answer.text


@pytest.mark.parametrize(
    ("body", "place", "hint"),
    [
        (b"{'seed': 1}", "line 1, column 2", "double quotes"),
        (b'{\n "seed": 1,\n}', "line 3, column 1", "comma"),
        (b'{"eta": 1,\n "scale": NaN}', "line 2, column 11", "finite"),
        (b'{"note": "NaN", "scale": -Infinity}', "line 1, column 26", "finite"),
        (b'{"use_cache": False}', "line 1, column 15", "lower case"),
        (b'{"prompt": "a\nb"}', "line 1, column 14", "\\n"),
        (b'{"seed": 1', "line 1, column 11", "too early"),
        ('{"seed": 1}'.encode("utf-16"), "line 1, column 1", "UTF-16"),
    ],
)
def test_json_that_is_none_is_refused_with_the_place_and_what_would_be_right(
    open_gateway: Callable[..., TestClient], body: bytes, place: str, hint: str
) -> None:
    gateway = open_gateway(auth="off")
    for path in ("/generate", "/plan", "/sweeps", "/v1/images/generations"):
        answer = gateway.post(path, content=body, headers={"Content-Type": "application/json"}).json()
        detail = answer["error"]["message"] if "error" in answer else answer["detail"]
        assert place in detail
        assert hint in detail
    line = b'{"seed": 1}\n' + body.replace(b"\n", b" ")
    if b"\n" not in body and b"\0" not in body:
        refused = gateway.post("/batches", content=line, headers={"Content-Type": "application/x-ndjson"}).json()
        assert refused["line"] == 2
        assert place.partition(", ")[2] in refused["detail"]
        assert hint in refused["detail"]


def test_steps_that_are_not_certain_are_checked_once_by_a_worker_before_there_is_a_job(
    open_gateway: Callable[..., TestClient], store_settings: StoreSettings, card: ModelCard
) -> None:
    gateway, desk = open_gateway(auth="off"), InquiryDesk(store_settings, ["fashion"])
    FleetRegistry(store_settings).publish("worker", [card.model_copy(update={"certain_steps": {"ddim": 10}})])
    refused = JobError(code="invalid_request", message="a noise level repeats")
    with ThreadPoolExecutor(1) as pool:
        for steps, verdict, status in ((20, refused, 422), (30, None, 202)):
            asking = pool.submit(gateway.post, "/generate", json={"class_label": 1, "steps": steps})
            inquiry = desk.take(timeout_s=10)
            assert inquiry is not None
            assert (inquiry.is_check, inquiry.request.steps) == (True, steps)
            desk.answer(inquiry, verdict)
            first = asking.result()
            again = gateway.post("/generate", json={"class_label": 1, "steps": steps})  # the worker is not asked
            assert (first.status_code, again.status_code) == (status, status)
    problem = gateway.post("/generate", json={"class_label": 1, "steps": 20}).json()
    assert (problem["field"], "steps 20" in problem["detail"]) == ("steps", True)
    assert refused.message in problem["detail"]
    assert gateway.post("/generate", json={"class_label": 1, "steps": 10}).status_code == 202
    assert {job["request"]["steps"] for job in gateway.get("/jobs").json()["jobs"]} == {10, 30}


def test_prompts_that_may_be_refused_are_checked_by_a_worker_before_there_is_a_job(
    open_gateway: Callable[..., TestClient], store_settings: StoreSettings, emoji: ModelCard
) -> None:
    gateway, desk = open_gateway(auth="off"), InquiryDesk(store_settings, ["emoji"])
    options = {"long_prompts": tuple(LongPrompt), "prompt_syntaxes": tuple(PromptSyntax), "max_clip_skip": 2}
    FleetRegistry(store_settings).publish("worker", [emoji.model_copy(update=options)])
    message = "prompt has 90 tokens, and the model's text encoder reads 75: shorten it"
    refused = JobError(code="invalid_request", message=message, field="prompt")
    strict = {"prompt": "a cat", "long_prompt": "refuse"}
    asked: list[tuple[str, dict[str, Any], str]] = [
        ("/generate", strict, "prompt"),
        ("/generate", {"prompt": "a (cat:1.2)", "prompt_syntax": "weighted"}, "prompt"),
        ("/sweeps", {"prompts": ["a cat", "a dog"], "request": {"long_prompt": "refuse"}}, "prompts"),
    ]
    with ThreadPoolExecutor(1) as pool:
        for path, body, field in asked:
            asking = pool.submit(gateway.post, path, json=body)
            inquiry = desk.take(timeout_s=10)
            assert inquiry is not None
            assert inquiry.is_check
            desk.answer(inquiry, refused)
            problem = asking.result().json()
            assert (problem["status"], problem["field"], problem["detail"]) == (422, field, f"{message}.")
    assert gateway.post("/generate", json=strict).status_code == 422, "the worker is not asked again"
    job = gateway.post("/generate", json={"prompt": "a cat"}).json()
    reading = {"long_prompt": "chunk", "prompt_syntax": "plain", "clip_skip": 1}
    assert {name: job["request"][name] for name in reading} == reading
    refusal = gateway.post("/generate", json={"prompt": "a cat", "clip_skip": 3}).json()
    assert (refusal["field"], refusal["detail"]) == ("clip_skip", "'emoji' takes a clip_skip of 1 to 2.")


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "allowed"),
    [("GET", "/nothing", 404, "not_found", None), ("PUT", "/generate", 405, "method_not_allowed", "POST")],
)
def test_what_no_route_answers_has_a_code_of_its_own(
    open_gateway: Callable[..., TestClient], method: str, path: str, status: int, code: str, allowed: str | None
) -> None:
    answer = open_gateway(auth="off").request(method, path)
    assert (answer.status_code, answer.json()["code"], answer.headers.get("allow")) == (status, code, allowed)


@pytest.mark.parametrize(
    ("failure", "status", "code", "is_told"),
    [
        (JobError(code="invalid_request", message="2 steps are too few"), 422, "invalid_request", True),
        (JobError(code="internal", message="KeyError: 'secret'"), 500, "internal", False),
    ],
    ids=["refused", "failed"],
)
def test_a_plan_that_failed_is_no_fault_of_the_request(
    open_gateway: Callable[..., TestClient],
    store_settings: StoreSettings,
    failure: JobError,
    status: int,
    code: str,
    is_told: bool,
) -> None:
    gateway, desk = open_gateway(auth="off"), InquiryDesk(store_settings, ["fashion"])
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(gateway.post, "/plan", json={"class_label": 1})
        inquiry = desk.take(timeout_s=10)
        assert inquiry is not None
        desk.answer(inquiry, failure)
    problem = asking.result().json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert (failure.message in problem["detail"]) == is_told
