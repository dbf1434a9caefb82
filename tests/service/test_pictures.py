"""Pictures as files: the request inside, other formats, and the way back from a picture to the same bytes."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo


def post(url: str, accept: str = "image/png", **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/generate", json=body, headers={"Accept": accept, "Prefer": "wait=60"}, timeout=90)


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


REQUESTS: list[dict[str, Any]] = [
    {"class_label": "bag", "guidance_mode": "combined", "scale": 2, "classifier_scale": 3, "steps": 6},
    {"class_label": 3, "guidance_mode": "classifier", "classifier_condition": {"not": [1, "bag"]}, "steps": 5},
    {"class_label": 4, "timestep_respacing": "ddim10", "eta": 0.5, "guidance_interval": [0.2, 0.9]},
    {"guidance_mode": "none", "sampler": "euler_ancestral", "steps": 7},
    {"class_label": 2, "guide_model": "fashion", "guidance_mode": "classifier_free", "scale": 2, "steps": 4},
]


@pytest.mark.parametrize("body", REQUESTS, ids=lambda body: str(body.get("guidance_mode")))
def test_a_picture_alone_makes_the_same_bytes_again(server_url: str, body: dict[str, Any]) -> None:
    first = post(server_url, **body)
    assert first.status_code == 200, first.text
    remade = post(server_url, from_image=encoded(first.content), use_cache=False)
    assert remade.content == first.content
    for accept in ("image/jpeg", "image/webp"):
        other = post(server_url, accept, from_image=encoded(first.content))
        assert other.headers["content-type"] == accept
        assert post(server_url, from_image=encoded(other.content), use_cache=False).content == first.content


def test_the_third_picture_of_a_job_and_one_of_a_sweep_can_be_made_alone(server_url: str) -> None:
    wait = {"Prefer": "wait=60"}
    job = httpx.post(f"{server_url}/generate", json={"class_label": 1, "steps": 4, "num_images": 3}, headers=wait)
    sweep = {"request": {"steps": 4, "guidance_mode": "classifier_free"}, "class_labels": [1, 2], "seeds": [5]}
    grid = httpx.post(f"{server_url}/sweeps", json=sweep, headers=wait, timeout=90)
    for address in (job.json()["images"][2]["url"], grid.json()["images"][1]["url"]):
        png = httpx.get(server_url + address).content
        assert post(server_url, from_image=encoded(png), use_cache=False).content == png


def test_a_picture_that_is_cut_short_is_the_requests_fault(server_url: str) -> None:
    whole = io.BytesIO()
    Image.new("L", (28, 28), 90).save(whole, "PNG")
    answer = post(server_url, class_label=1, steps=2, init_image=encoded(whole.getvalue()[:50]))
    assert answer.status_code == 422
    assert answer.json()["job_code"] == "invalid_request"
    assert "cut short" in answer.json()["detail"]


def test_a_picture_made_from_a_picture_needs_that_one_again(server_url: str) -> None:
    start = io.BytesIO()
    Image.new("L", (28, 28), 90).save(start, "PNG")
    init = encoded(start.getvalue())
    first = post(server_url, class_label=1, steps=8, strength=0.5, init_image=init, seed=3)
    refused = post(server_url, from_image=encoded(first.content))
    assert (refused.status_code, refused.json()["field"]) == (422, "init_image")
    again = post(server_url, from_image=encoded(first.content), init_image=f"data:image/png;base64,{init}")
    assert again.content == first.content


def test_what_the_request_sets_itself_stands(server_url: str) -> None:
    first = post(server_url, class_label="bag", steps=5, seed=3)
    other = post(server_url, from_image=encoded(first.content), seed=4, class_label="coat")
    assert json.loads(Image.open(io.BytesIO(other.content)).info["cynosure"])["request"]["seed"] == 4
    assert other.content == post(server_url, class_label="coat", steps=5, seed=4).content


def test_webp_loses_nothing_jpeg_little_and_both_keep_the_texts(server_url: str) -> None:
    body = {"class_label": "bag", "steps": 5, "seed": 3}
    png, jpeg, webp = (post(server_url, f"image/{kind}", **body).content for kind in ("png", "jpeg", "webp"))
    drawn = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    assert np.array_equal(drawn, np.asarray(Image.open(io.BytesIO(webp)).convert("RGB")))
    assert np.abs(drawn - np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))).mean() < 4
    text = Image.open(io.BytesIO(png)).info
    for content in (jpeg, webp):
        exif = Image.open(io.BytesIO(content)).getexif()
        assert exif[0x010E] == text["cynosure"]
        assert exif.get_ifd(0x8769)[0x9286][8:].decode("utf-16-be") == text["parameters"]


def test_a_jobs_addresses_have_the_format_it_asked_for_and_any_other_can_be_had(server_url: str) -> None:
    job = post(server_url, "application/json", class_label=2, steps=4, output_format="webp").json()
    address = job["images"][0]["url"]
    assert address.endswith("/images/0.webp")
    for kind in ("png", "jpeg", "webp"):
        answer = httpx.get(server_url + address.replace(".webp", f".{kind}"))
        assert answer.headers["content-type"] == f"image/{kind}"
        assert Image.open(io.BytesIO(answer.content)).format == kind.upper()
    low, high = (httpx.get(server_url + address.replace("webp", f"jpeg?quality={quality}")) for quality in (5, 100))
    assert len(low.content) < len(high.content)


def test_a_picture_without_a_request_is_refused(server_url: str) -> None:
    foreign = io.BytesIO()
    Image.new("L", (4, 4)).save(foreign, "PNG")
    for content in (foreign.getvalue(), b"no picture"):
        refused = post(server_url, from_image=encoded(content))
        assert (refused.status_code, refused.json()["field"]) == (422, "from_image")


@pytest.mark.parametrize("digest", ["digest", "guide_digest"])
def test_a_picture_by_other_weights_is_refused_unless_a_model_is_named(server_url: str, digest: str) -> None:
    first = post(server_url, class_label=2, guide_model="fashion", guidance_mode="classifier_free", steps=4)
    changed = io.BytesIO()
    with Image.open(io.BytesIO(first.content), formats=("PNG",)) as picture:
        text = PngInfo()
        text.add_text("cynosure", json.dumps(json.loads(picture.info["cynosure"]) | {digest: "0" * 64}))
        picture.save(changed, "PNG", pnginfo=text)
    refused = post(server_url, from_image=encoded(changed.getvalue()))
    assert (refused.status_code, refused.json()["field"]) == (422, "from_image")
    assert "another 'fashion' (0000000000…" in refused.json()["detail"]
    taken = post(server_url, from_image=encoded(changed.getvalue()), model="fashion", use_cache=False)
    assert taken.content == first.content


def test_an_accept_header_is_weighed(server_url: str) -> None:
    body = {"class_label": 2, "steps": 4, "seed": 8}
    for accept, kind in {
        "application/json;q=0.5, image/webp": "image/webp",
        "image/webp;q=0.5, application/json": "application/json",
        "image/*": "image/png",
        "*/*": "application/json",
    }.items():
        assert post(server_url, accept, **body).headers["content-type"] == kind, accept
