"""The commands, as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cynosure import __version__
from harness.processes import clean_environment

CYNOSURE = Path(sys.executable).with_name("cynosure")


def cynosure(*arguments: str, url: str = "http://127.0.0.1:9") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CYNOSURE, *arguments],
        env=clean_environment(CYNOSURE_URL=url, COLUMNS="200"),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_generate_saves_as_many_pictures_as_asked_each_with_its_request_inside(server_url: str, tmp_path: Path) -> None:
    asked = {"--label": "sneaker", "--guidance": "classifier_free", "--scale": "3", "--steps": "6", "--seed": "9"}
    options = [word for option in asked.items() for word in option]
    answer = cynosure("generate", *options, "-n", "8", "-o", str(tmp_path / "out"), url=server_url)
    assert answer.returncode == 0, answer.stderr
    paths = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in paths] == [f"9-{index:02d}.png" for index in range(8)]
    assert all(str(path) in answer.stdout for path in paths)
    for index, path in enumerate(paths):
        with Image.open(path) as picture:
            made_from = json.loads(picture.text["cynosure"])
            assert picture.text["parameters"].startswith("sneaker\nSteps: 6, Sampler: ddim, CFG scale: 3, Seed: 9")
        assert made_from["image_index"] == index
        assert made_from["request"]["guidance_mode"] == "classifier_free"


def test_sweep_saves_the_grid_and_its_sheet(server_url: str, tmp_path: Path) -> None:
    options = ["--labels", "sneaker,8", "--scales", "1,4", "--seeds", "3", "--interval", "0.25,1", "--steps", "6"]
    answer = cynosure("sweep", *options, "--guidance", "classifier_free", "-o", str(tmp_path), url=server_url)
    assert answer.returncode == 0, answer.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000.png", "001.png", "002.png", "003.png", "sheet.png"]


def test_models_lists_what_can_be_asked(server_url: str) -> None:
    answer = cynosure("models", url=server_url)
    assert answer.returncode == 0, answer.stderr
    for word in ("fashion", "28×28", "sneaker", "classifier_free", "dpmpp_2m"):
        assert word in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", "--label", "sneker"], "class_label: No class 'sneker'. Did you mean 'sneaker'?"),
        (["generate", "--label", "bag", "--sampler", "eular"], "sampler: No sampler 'eular'. Did you mean 'euler'?"),
        (["generate", "--label", "bag", "--steps", "0"], "steps must be at least 1"),
        (["generate", "--label", "bag", "--set", "cfg_scale=3"], "No field 'cfg_scale'. Here it is guidance_scale."),
    ],
)
def test_a_typo_is_answered_in_one_line(server_url: str, arguments: list[str], says: str) -> None:
    answer = cynosure(*arguments, url=server_url)
    assert answer.returncode == 1
    assert says in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_picture_is_never_written_over_another(server_url: str, tmp_path: Path) -> None:
    for label in ("bag", "coat", "bag"):
        options = ["--label", label, "--seed", "1", "--steps", "2", "-o", str(tmp_path)]
        answer = cynosure("generate", *options, url=server_url)
        assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == str(tmp_path / "1-00.png"), "the same bytes are the same file"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1-00-1.png", "1-00.png"]


def test_the_version_is_the_packages() -> None:
    answer = cynosure("--version")
    assert (answer.returncode, answer.stdout) == (0, f"cynosure {__version__}\n")


def test_prompts_are_swept_where_a_model_takes_them(server_url: str) -> None:
    answer = cynosure("sweep", "--prompt", "a cat, asleep", "--prompt", "a dog", url=server_url)
    assert answer.returncode == 1
    assert "prompts: 'fashion' takes no prompts." in answer.stderr


def test_no_server_is_said(tmp_path: Path) -> None:
    answer = cynosure("generate", "--label", "bag", "-o", str(tmp_path))
    assert answer.returncode == 3
    assert "Is `cynosure up` running?" in answer.stderr
