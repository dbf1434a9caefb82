"""`make run` as it comes: labels and prompts, and nothing named that isn't necessary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from PIL import Image
from playwright.sync_api import expect

from cynosure import Client, SweepRequest
from tests.acceptance.test_cli import cynosure
from tests.acceptance.test_survival import Up
from tests.chromium import Visit, chromium


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Up(tmp_path_factory.mktemp("data"), models=None) as server:
        yield server.url


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


def test_a_stranger_draws_a_prompt_in_the_studio(url: str) -> None:
    with chromium() as browser:
        visit = Visit(browser, url)
        page = visit.open()
        page.get_by_role("radio", name="emoji").click()
        page.get_by_label("Prompt", exact=True).fill("red apple")
        page.get_by_role("button", name="Draw").click()
        expect(page.get_by_alt_text("red apple, noto, picture 1 of 1")).to_have_js_property("naturalWidth", 32)
        expect(page.get_by_role("button", name="Copy link")).to_be_visible()
        visit.keep("stranger")
        visit.close()
