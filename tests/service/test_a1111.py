"""A1111's API, with PyPI's `webuiapi` unchanged where it has the call."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import webuiapi
from fastapi.testclient import TestClient
from PIL import Image

from app.gateway.a1111.infotext import parsed_infotext
from app.gateway.a1111.samplers import sampling_of
from app.gateway.a1111.shapes import TextToImage, request_of
from cynosure.client import Client
from cynosure.contract import LongPrompt, ModelCard, PromptSyntax
from cynosure.errors import UnknownSampler, UnsupportedField
from harness.processes import wait_until
from jobs.queue.record import ANONYMOUS

SMALL = {"steps": 4, "cfg_scale": 3, "sampler_name": "Euler a"}


@pytest.fixture(scope="module")
def api(server_url: str) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(baseurl=f"{server_url}/sdapi/v1")


def test_each_picture_has_a_seed_of_its_own_and_is_the_one_that_generate_draws(
    api: webuiapi.WebUIApi, server_url: str
) -> None:
    answer = api.txt2img(prompt="bag", seed=7, batch_size=2, n_iter=2, tiling=True, **SMALL)
    info = answer.info
    assert (info["all_seeds"], info["sampler_name"], info["sd_model_name"]) == ([7, 8, 9, 10], "Euler a", "fashion")
    assert "Steps: 4, Sampler: Euler a, CFG scale: 3, Seed: 8, Size: 28x28" in info["infotexts"][1]
    assert [one.info["parameters"] for one in answer.images] == info["infotexts"]
    assert {"tiling", "width", "height"} <= {*info["ignored"]}  # webuiapi sends 512, and the model has one size
    assert not {"prompt", "subseed", "eta", "steps"} & {*info["ignored"]}
    assert (answer.parameters["prompt"], "tiling" in answer.parameters) == ("bag", False)
    body = {"class_label": "bag", "seed": 8, "steps": 4, "scale": 3, "sampler": "euler_ancestral", "use_cache": False}
    ours = httpx.post(f"{server_url}/generate", json=body, headers={"Accept": "image/png"}, timeout=60)
    assert base64.b64decode(answer.json["images"][1]) == ours.content


def test_a_mask_is_white_where_the_picture_is_redrawn_unless_it_is_inverted(api: webuiapi.WebUIApi) -> None:
    start, mask = Image.new("L", (28, 28), 200), Image.new("L", (28, 28), 0)
    mask.paste(255, (0, 0, 14, 28))
    right, left = (15, 0, 28, 28), (0, 0, 13, 28)
    for inverted, kept, redrawn in ((0, right, left), (1, left, right)):
        answer = api.img2img(
            [start], prompt="bag", mask_image=mask, inpainting_mask_invert=inverted, denoising_strength=1, **SMALL
        )
        darkest, lightest = answer.image.convert("L").crop(kept).getextrema()
        assert 195 <= darkest <= lightest <= 205
        assert answer.image.convert("L").crop(redrawn).getextrema()[0] < 195
        assert "init_images" not in answer.parameters
        assert "Denoising strength: 1" in answer.info["infotexts"][0]


def test_a_picture_says_how_it_was_made(api: webuiapi.WebUIApi) -> None:
    drawn = api.txt2img(prompt="coat", seed=1, **SMALL)
    read = api.png_info(drawn.image)
    assert read.info == drawn.info["infotexts"][0]
    assert (read.parameters["Prompt"], read.parameters["Sampler"], read.parameters["Size-1"]) == (
        "coat",
        "Euler a",
        "28",
    )


def test_what_clients_ask_as_they_start_is_answered(api: webuiapi.WebUIApi) -> None:
    [title] = api.util_get_model_names()
    assert title.startswith("fashion [")
    assert {"Euler a", "DPM++ 2M", "DDIM", "ddpm"} <= {*api.util_get_sampler_names()}
    assert {"automatic", "karras"} <= {*api.util_get_scheduler_names()}
    api.util_set_model("fashoin")
    assert api.util_get_current_model() == title
    assert api.set_options({"sd_model_checkpoint": "fashion", "CLIP_stop_at_last_layers": 2}) == {
        "ignored": ["CLIP_stop_at_last_layers"]
    }
    assert api.get_loras() == api.get_sd_vae() == api.get_hypernetworks() == api.get_face_restorers() == []
    assert api.get_latent_upscale_modes() == api.get_realesrgan_models() == api.get_prompt_styles() == []
    assert [one["name"] for one in api.get_upscalers()] == ["None"]
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.get_cmd_flags()["api"] is True
    assert api.get_embeddings()["loaded"] == api.refresh_checkpoints() == {}
    api.util_wait_for_ready()


def test_progress_has_previews_and_interrupt_ends_the_call(api: webuiapi.WebUIApi, server_url: str) -> None:
    shown: dict[str, Any] = {}

    def has_preview() -> bool:
        shown.update(api.get_progress())
        return shown["current_image"] is not None and shown["progress"] > 0

    long = {**SMALL, "steps": 1000, "override_settings": {"show_progress_every_n_steps": 5}}
    with ThreadPoolExecutor() as pool:
        call = pool.submit(api.txt2img, prompt="dress", batch_size=4, seed=1, **long)
        wait_until(has_preview, what="there is a preview and progress")
        preview = Image.open(io.BytesIO(base64.b64decode(shown["current_image"])))
        assert preview.size == (28, 28)
        assert shown["progress"] < 1
        assert shown["state"]["sampling_steps"] == 1000
        without = httpx.get(f"{server_url}/sdapi/v1/progress", params={"skip_current_image": True}).json()
        assert without["current_image"] is None
        assert api.interrupt() == {}
        with pytest.raises(RuntimeError, match="job_cancelled"):
            call.result(timeout=60)
    assert api.get_progress()["state"]["job_count"] == 0
    with Client(server_url) as ours:
        assert ours.job(shown["state"]["job"]).status == "cancelled"


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"prompt": "a corgi"}, "prompt", "No class 'a corgi'"),
        ({"sampler_name": "DPM++ SDE"}, "sampler_name", "Did you mean 'DPM++ 2M SDE'?"),
        ({"scheduler": "Beta"}, "scheduler", "has no scheduler 'beta'"),
        ({"steps": 0}, "steps", "at least 1"),
        ({"n_iter": 65}, "n_iter", "at most 64"),
        ({"n_iter": 9, "batch_size": 9}, "n_iter", "at most 64"),
        ({"enable_hr": True}, "enable_hr", "no second pass"),
        ({"script_name": "X/Y/Z plot"}, "script_name", "no scripts"),
        (
            {"override_settings": {"sd_model_checkpoint": "v1-5.ckpt [cafe]"}},
            "override_settings.sd_model_checkpoint",
            "No model 'v1-5'",
        ),
        (
            {"override_settings": {"CLIP_stop_at_last_layers": 2}},
            "override_settings.CLIP_stop_at_last_layers",
            "takes no override_settings.CLIP_stop_at_last_layers",
        ),
    ],
)
def test_refusals_name_the_field_that_the_client_sent(
    api: webuiapi.WebUIApi, fields: dict[str, Any], field: str, says: str
) -> None:
    with pytest.raises(RuntimeError) as refusal:
        api.txt2img(**{"prompt": "bag", **SMALL, **fields})
    status, text = refusal.value.args
    assert (status, f'"field":"{field}"' in text, says in text) == (422, True, True), text


def test_pictures_come_as_base64_only(api: webuiapi.WebUIApi, server_url: str) -> None:
    for body, field in (
        ({"init_images": ["http://127.0.0.1/a.png"]}, "init_images"),
        ({"init_images": ["aGk=", "aGk="]}, "init_images"),
        ({"init_images": []}, "init_images"),
        ({}, "init_images"),
    ):
        answer = httpx.post(f"{server_url}/sdapi/v1/img2img", json={"prompt": "bag", **body})
        assert (answer.status_code, answer.json()["field"]) == (422, field), answer.text


@pytest.mark.parametrize(
    ("sampler", "scheduler", "fields"),
    [
        (None, None, {}),
        ("Euler a", "automatic", {"sampler": "euler_ancestral"}),
        ("k_euler_ancestral", None, {"sampler": "euler_ancestral"}),
        ("DPM++ 2M", "Automatic", {"sampler": "dpmpp_2m", "sigma_schedule": "karras"}),
        ("DPM++ 2M Karras", "automatic", {"sampler": "dpmpp_2m", "sigma_schedule": "karras"}),
        ("dpm++ 2m exponential", "karras", {"sampler": "dpmpp_2m", "sigma_schedule": "exponential"}),
        ("DPM++ 2M", "SGM Uniform", {"sampler": "dpmpp_2m", "timestep_spacing": "trailing"}),
        ("DPM2 a Karras", None, {"sampler": "kdpm2_ancestral"}),
        ("DDIM", "karras", {"sampler": "ddim"}),
        ("ddpm", None, {"sampler": "ddpm"}),
    ],
)
def test_samplers_and_schedulers_are_those_of_the_same_name(
    card: ModelCard, sampler: str | None, scheduler: str | None, fields: dict[str, str]
) -> None:
    samplers = ("ddim", "ddpm", "euler_ancestral", "dpmpp_2m", "kdpm2_ancestral")
    whole = card.model_copy(update={"samplers": samplers, "sigma_schedules": {"dpmpp_2m": ("karras", "exponential")}})
    assert sampling_of(sampler, scheduler, whole) == fields


def test_unknown_samplers_and_schedulers_are_refused(card: ModelCard) -> None:
    with pytest.raises(UnknownSampler):
        sampling_of("DPM adaptive", None, card)
    with pytest.raises(UnsupportedField):
        sampling_of("DDIM", "turbo", card)


def test_prompts_are_read_as_there_by_models_that_can(emoji: ModelCard) -> None:
    sent = TextToImage.model_validate(
        {
            "prompt": "a (cat:1.2)",
            "negative_prompt": "",
            "eta": 0.5,
            "sampler_name": "",
            "styles": ["x"],
            "subseed": -1,
            "steps": None,
            "override_settings": {"CLIP_stop_at_last_layers": 2, "eta_noise_seed_delta": 31337},
        }
    )
    plain = emoji.model_copy(update={"max_clip_skip": 4})
    able = {"prompt_syntaxes": tuple(PromptSyntax), "long_prompts": tuple(LongPrompt)[::-1]}
    request, ignored = request_of(sent, plain.model_copy(update=able))
    assert (request.prompt_syntax, request.long_prompt, request.clip_skip) == ("weighted", "chunk", 2)
    assert (request.prompt, request.negative_prompt, request.eta, request.preview_every) == (
        "a (cat:1.2)",
        None,
        0.5,
        10,
    )
    assert ignored == ["styles", "override_settings.eta_noise_seed_delta"]
    request, _ = request_of(sent, plain)
    assert (request.prompt_syntax, request.long_prompt) == (None, None)


def test_the_text_in_pictures_is_taken_apart() -> None:
    text = 'a cat,\nwith: a hat\nNegative prompt: dog\nSteps: 2, Sampler: Euler a, Lora hashes: "a: 1, b: 2", Size: 8x9'
    assert parsed_infotext(text) == {
        "Prompt": "a cat,\nwith: a hat",
        "Negative prompt": "dog",
        "Steps": "2",
        "Sampler": "Euler a",
        "Lora hashes": '"a: 1, b: 2"',
        "Size-1": "8",
        "Size-2": "9",
    }
    assert parsed_infotext("one: 1, two: 2") == {"Prompt": "one: 1, two: 2", "Negative prompt": ""}


def test_the_password_is_the_api_key(open_gateway: Callable[..., TestClient], make_key: Callable[..., str]) -> None:
    path, token = "/sdapi/v1/samplers", make_key()
    closed, open_ = open_gateway(auth="required"), open_gateway(auth="off")
    assert closed.get(path, auth=("anybody", token)).status_code == 200
    assert closed.get(path, headers={"Authorization": f"Bearer {token}"}).status_code == 200
    refused = closed.get(path, auth=("anybody", token[:-1] + "?"))
    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer"), "browsers must not ask"
    assert closed.get(path, headers={"Authorization": "Basic ?"}).status_code == 401
    assert closed.get("/models", auth=("anybody", token)).status_code == 401
    assert open_.get(path, auth=("user", "password")).status_code == 200
    assert open_.get(path, auth=("user", token[:-1] + "?")).status_code == 401


def test_each_key_has_its_own_calls_and_choice(
    open_gateway: Callable[..., TestClient], make_key: Callable[..., str]
) -> None:
    gateway, mine, other = open_gateway(auth="required"), ("me", make_key()), ("you", make_key())

    def jobs(auth: tuple[str, str]) -> int:
        return gateway.get("/sdapi/v1/progress", auth=auth).json()["state"]["job_count"]

    with ThreadPoolExecutor() as pool:
        call = pool.submit(gateway.post, "/sdapi/v1/txt2img", json={"prompt": "sneaker"}, auth=mine)
        wait_until(lambda: jobs(mine) == 1, what="the call is held")
        assert jobs(other) == 0
        gateway.post("/sdapi/v1/interrupt", auth=other)
        assert jobs(mine) == 1
        gateway.post("/sdapi/v1/skip", auth=mine)
        assert call.result(timeout=60).json()["code"] == "job_cancelled"
    assert jobs(mine) == 0
    aliases = open_gateway(auth="required", model_aliases={"sd": "fashion"})
    assert aliases.post("/sdapi/v1/options", json={"sd_model_checkpoint": "sd.safetensors"}, auth=mine).is_success
    refused = aliases.post("/sdapi/v1/options", json={"sd_model_checkpoint": "nope"}, auth=mine)
    assert (refused.status_code, refused.json()["field"]) == (422, "sd_model_checkpoint")


def test_a_choice_that_is_no_longer_served_is_told(open_gateway: Callable[..., TestClient]) -> None:
    gateway = open_gateway(auth="off")
    assert gateway.portal is not None
    gateway.portal.call(gateway.app_state["store"].sessions.choose, ANONYMOUS, "gone")
    refused = gateway.post("/sdapi/v1/txt2img", json={"prompt": "sneaker"}).json()
    assert refused["field"] == "override_settings.sd_model_checkpoint"
    assert "'gone', chosen with POST /sdapi/v1/options" in refused["detail"]
    assert gateway.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "gone"


def test_it_is_off_by_a_setting(open_gateway: Callable[..., TestClient]) -> None:
    gateway = open_gateway(a1111=False)
    assert gateway.get("/sdapi/v1/samplers").status_code == 404
    assert not any(path.startswith("/sdapi") for path in gateway.get("/openapi.json").json()["paths"])
