"""What clients of other servers are used to: HEAD, null, seed -1, other names, entity tags."""

from __future__ import annotations

import base64
import re
import textwrap
from typing import Any

import httpx
import pytest

from app.gateway.formats import best
from app.gateway.openai.forms import _value_of
from app.gateway.openai.shapes import ImageParams
from app.gateway.submission import draw_seed
from cynosure import synonyms
from cynosure.batches import BatchLine
from cynosure.client import Client
from cynosure.contract import GenerateRequest, ModelCard, OutputFormat, SweepRequest
from cynosure.errors import NotAcceptable
from cynosure.pictures import opened
from cynosure.resolving import resolve
from models.samplers import SAMPLERS
from tests.service.test_inputs import picture


@pytest.fixture(scope="module")
def drawn(server_url: str) -> str:
    """The address of a finished picture."""
    with Client(server_url) as client:
        job = client.wait(client.submit(class_label=1, steps=2, seed=1).id)
    return server_url + job.images[0].url


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/json; charset=utf-8", "application/json"),
        ("image/*", "image/png"),
        ("image/webp, image/*", "image/webp"),
        ("image/*, image/png;q=0.5", "image/jpeg"),
        ("image/png;q=0, */*;q=0.1, application/json;q=0", "image/jpeg"),
        ("image/png;q=0.2, application/json;q=0.1", "image/png"),
        ("text/html, image/avif, image/webp, */*;q=0.8", "image/webp"),
        ("text/html", None),
        ("*/*;q=0", None),
    ],
)
def test_the_media_type_is_the_one_that_the_client_likes_best(accept: str | None, chosen: str | None) -> None:
    offers = ["application/json", "image/png", "image/jpeg", "image/webp"]
    if chosen is not None:
        assert best(accept, offers) == chosen
        return
    with pytest.raises(NotAcceptable, match="image/webp"):
        best(accept, offers)


def test_what_exists_in_one_form_is_not_sent_in_another(drawn: str) -> None:
    refused = httpx.get(drawn, headers={"Accept": "image/webp"})
    assert (refused.status_code, refused.json()["code"]) == (406, "not_acceptable")
    assert "image/png" in refused.json()["detail"]
    assert httpx.get(drawn, headers={"Accept": "image/webp, */*;q=0.1"}).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/models", "/openapi.json", "/docs", "/nowhere"])
def test_head_is_get_without_the_body(server_url: str, path: str) -> None:
    whole, head = httpx.get(server_url + path), httpx.head(server_url + path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert head.headers["content-length"] == whole.headers["content-length"]


def test_head_of_a_stream_ends_at_once(server_url: str) -> None:
    with Client(server_url) as client:
        job = client.submit(class_label=1, steps=900, use_cache=False)
        head = httpx.head(f"{server_url}/jobs/{job.id}/events", timeout=5)
        client.cancel(job.id)
    assert head.headers["content-type"].startswith("text/event-stream")


def test_entity_tags_are_compared_weakly_and_in_lists(drawn: str) -> None:
    tag = httpx.get(drawn).headers["etag"]
    for value in (tag, f"W/{tag}", f'"other", W/{tag}', "*"):
        assert httpx.get(drawn, headers={"If-None-Match": value}).status_code == 304, value
    assert httpx.get(drawn, headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_range_is_only_of_the_picture_that_the_client_has_begun(drawn: str) -> None:
    whole = httpx.get(drawn)
    part = {"Range": "bytes=0-9"}
    same = httpx.get(drawn, headers=part | {"If-Range": whole.headers["etag"]})
    assert (same.status_code, same.content) == (206, whole.content[:10])
    other = httpx.get(drawn, headers=part | {"If-Range": '"other"'})
    assert (other.status_code, other.content) == (200, whole.content)


def test_jpg_is_jpeg(drawn: str) -> None:
    assert httpx.get(drawn.replace(".png", ".jpg")).headers["content-type"] == "image/jpeg"
    assert OutputFormat("jpg") is OutputFormat.JPEG


def test_seeds_that_are_drawn_here_survive_javascript() -> None:
    seeds = [draw_seed() for _ in range(1000)]
    assert max(seeds) < 2**53
    assert len(set(seeds)) == 1000


@pytest.mark.parametrize("model", [GenerateRequest, ImageParams])
def test_null_is_a_field_that_was_left_out(model: type[GenerateRequest]) -> None:
    nothing = dict.fromkeys(name for name in model.model_fields if name != "prompt")
    assert model.model_validate({"prompt": "x", **nothing}) == model(prompt="x")


def test_seed_minus_one_asks_for_a_random_one(card: ModelCard) -> None:
    assert GenerateRequest.model_validate({"seed": -1}).seed is None
    assert resolve(GenerateRequest.model_validate({"class_label": 1, "seed": -1}), card, seed=77).seed == 77


def test_a_label_may_be_an_index_as_text(card: ModelCard) -> None:
    assert resolve(GenerateRequest(class_label="2"), card, seed=0).class_label == 2


def test_base64_may_have_line_breaks() -> None:
    wrapped = "\r\n".join(textwrap.wrap(picture(), 76))
    assert opened(wrapped, "init_image").size == opened(picture(), "init_image").size
    assert base64.b64decode(wrapped) == base64.b64decode(picture())


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("prompt", "[watercolour] a cat", "[watercolour] a cat"),
        ("negative_prompt", "{red|blue}", "{red|blue}"),
        ("class_label", "7", "7"),
        ("guidance_interval", "[0.2, 0.8]", [0.2, 0.8]),
        ("steps", "5", "5"),
    ],
)
def test_a_forms_fields_are_read_by_their_type(field: str, text: str, value: Any) -> None:
    assert _value_of(field, text) == value


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"cfg_scale": 7}, "Here it is guidance_scale."),
        ({"batch_size": 2}, "Here it is num_images."),
        ({"size": "28x28"}, "Here it is width and height."),
        ({"crop": [0, 0]}, "Here it is crops_coords_top_left."),
        ({"denoising_strength": 0.5}, "Here it is strength."),
        ({"scheduler": "Karras"}, "Here it is sampler or sigma_schedule."),
        ({"subseed": 2}, "No field 'subseed'. Known: "),
        ({"CLIP_stop_at_last_layers": 2}, "Here it is clip_skip."),
        ({"clip_skip": 2}, "takes no clip_skip."),
        ({"class_label": 1, "guidance_mode": "cfg"}, "did you mean 'classifier_free'?"),
        ({"class_label": 1, "sampler": "UniPCMultistepScheduler"}, "Here it is unipc."),
        ({"class_label": 1, "sampler": "euler_a"}, "Here it is euler_ancestral."),
        ({"class_label": 1, "sampler": "DPM++ 2M Karras"}, "Here it is dpmpp_2m with sigma_schedule karras."),
        ({"class_label": 1, "scale": 3, "guidance_scale": 2}, "Give guidance_scale or scale, and only one of them."),
        ({"class_label": 1, "steps": 3, "num_inference_steps": 2}, "Give num_inference_steps or steps, and only one"),
    ],
)
def test_other_tools_names_lead_to_ours(server_url: str, body: dict[str, Any], says: str) -> None:
    answer = httpx.post(f"{server_url}/generate", json=body)
    assert answer.status_code == 422
    assert says in answer.json()["detail"]


def test_other_tools_samplers_lead_to_samplers_that_there_are() -> None:
    assert {name.partition(" ")[0] for name in synonyms.SAMPLERS.values()} <= SAMPLERS.keys()
    fields = {*ImageParams.model_fields, *BatchLine.model_fields, *SweepRequest.model_fields}
    assert {name for ours in synonyms.FIELDS.values() if ours for name in re.split(" and | or ", ours)} <= fields
