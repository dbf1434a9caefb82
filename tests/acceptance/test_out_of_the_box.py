"""`make run` as it comes, with the bundled LoRA: labels and prompts, and nothing named that isn't necessary."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from cynosure import Client, SweepRequest
from tests.acceptance.test_cli import cynosure
from tests.acceptance.test_survival import Up
from tests.chromium import Visit, chromium

LORAS = Path(__file__).resolve().parents[2] / "models/loras"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Up(tmp_path_factory.mktemp("data"), "--loras", str(LORAS), models=None) as server:
        yield server.url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


def test_the_command_line_draws_a_prompt_in_a_style(url: str, tmp_path: Path) -> None:
    answer = cynosure(
        "generate", "--prompt", "a happy cat", "--style", "noto", "--seed", "3", "-o", str(tmp_path), url=url
    )
    assert answer.returncode == 0, answer.stderr
    with Image.open(tmp_path / "3-00.png") as picture:
        assert (picture.size, picture.mode) == ((32, 32), "RGB")


def test_each_request_finds_its_model(url: str) -> None:
    with Client(url) as client:
        assert [card.name for card in client.models()] == ["fashion", "emoji"]
        [shoe] = client.generate(class_label="sneaker", steps=5)
        [apple] = client.generate(prompt="red apple", class_label="twemoji", guidance_mode="combined", steps=5)
        sweep = {"prompts": ["puppy", "rocket"], "seeds": [1, 2], "request": {"steps": 4}}
        sheet = client.wait(client.submit_sweep(SweepRequest.model_validate(sweep)).id)
    assert (shoe.size, apple.size) == ((28, 28), (32, 32))
    assert sheet.request.model == "emoji"


def test_openais_client_asks_in_words(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    answer = client.images.generate(prompt="a happy cat", extra_body={"steps": 4, "class_label": "fluent"})
    assert answer.size == "32x32"


def test_the_command_line_lists_loras(url: str) -> None:
    answer = cynosure("loras", url=url)
    assert answer.returncode == 0, answer.stderr
    name, rank, family, models, _, digest, *_ = answer.stdout.split("\t")
    assert (name, rank, family, models) == ("ink", "1", "Prompted pixels", "emoji")
    [listed] = json.loads(cynosure("loras", "--json", url=url).stdout)
    assert listed["digest"].startswith(digest)


def test_a_stranger_draws_a_prompt_in_the_studio(url: str, browser: Browser) -> None:
    visit = Visit(browser, url)
    page = visit.open()
    page.get_by_role("radio", name="emoji").click()
    page.get_by_label("Prompt", exact=True).fill("red apple")
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_alt_text("red apple, noto, picture 1 of 1")).to_have_js_property("naturalWidth", 32)
    expect(page.get_by_role("button", name="Copy link")).to_be_visible()
    visit.keep("stranger")
    visit.close()


def test_the_studio_draws_with_a_lora_and_says_what_is_wrong_in_its_line(url: str, browser: Browser) -> None:
    visit = Visit(browser, url)
    page = visit.open('request={"model":"emoji","prompt":"a cat","steps":4,"seed":3}')
    page.get_by_role("button", name="Add a LoRA").click()
    line = page.get_by_role("group", name="LoRA ink")
    scale = line.get_by_label("Scale of ink", exact=True)
    expect(scale).to_be_focused()
    scale.fill("20")
    expect(line.locator(".error").first).to_have_text("loras.0.scale must be at most 10.")
    line.get_by_role("slider").fill("-0.5")
    expect(scale).to_have_value("-0.5")
    expect(line.locator(".error").first).to_be_hidden()
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_role("button", name="Copy link")).to_be_visible()
    with Client(url) as client:
        [job] = client.jobs(limit=1).jobs
    assert [(lora.name, lora.scale) for lora in job.request.loras] == [("ink", -0.5)]
    own = httpx.get(f"{url}/jobs/{job.id}/images/0.png").content
    visit.keep("lora")

    page.goto(f"{url}/#compare")
    expect(page.locator(".shown")).to_contain_text('"loras":[{"name":"ink","scale":-0.5}]')
    page.go_back()
    page.get_by_role("radio", name="fashion").click()
    expect(page.locator(".remark")).to_have_text("Left out, since fashion can't use it: the LoRA ink.")
    expect(page.get_by_text("LoRAs")).to_have_count(0)
    page.reload()  # its address has the request
    expect(scale).to_have_value("-0.5")
    line.get_by_role("button", name="Remove").click()
    expect(page.get_by_label("LoRA to add")).to_be_focused()
    files = page.locator("[data-field=init_image] input[type=file]")
    files.set_input_files({"name": "own.png", "mimeType": "image/png", "buffer": own})
    expect(scale).to_have_value("-0.5")
    expect(page.get_by_role("tabpanel")).to_contain_text('"loras":[{"name":"ink","scale":-0.5}]')
    visit.close()
