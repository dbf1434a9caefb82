"""The commands, as a user types them."""

from __future__ import annotations

import json
import os
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
            assert picture.text["parameters"].startswith("sneaker\nSteps: 6, Sampler: DDIM, CFG scale: 3, Seed: 9")
        assert made_from["image_index"] == index
        assert made_from["request"]["guidance_mode"] == "classifier_free"


def test_sweep_saves_the_grid_and_its_sheet(server_url: str, tmp_path: Path) -> None:
    options = ["--labels", "sneaker,8", "--scales", "1,4", "--seeds", "3", "--interval", "0.25,1", "--steps", "6"]
    answer = cynosure("sweep", *options, "--guidance", "classifier_free", "-o", str(tmp_path), url=server_url)
    assert answer.returncode == 0, answer.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000.png", "001.png", "002.png", "003.png", "sheet.png"]


def test_models_lists_what_can_be_asked(server_url: str) -> None:
    answer = cynosure("models", "--labels", "--samplers", url=server_url)
    assert answer.returncode == 0, answer.stderr
    name, size, memory, *_, labels, samplers = answer.stdout.strip().split("\t")
    assert (name, size) == ("fashion", "28×28")
    assert memory.endswith(" MB")
    assert "sneaker" in labels
    assert "dpmpp_2m" in samplers
    short = cynosure("models", url=server_url).stdout.strip().split("\t")
    assert short[-2:] == [str(len(labels.split(", "))), str(len(samplers.split(", ")))]


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


def test_an_address_needs_no_scheme(server_url: str) -> None:
    assert cynosure("models", url=server_url.removeprefix("http://")).returncode == 0


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "ftp://127.0.0.1", "http://", "127.0.0.1:x", ""])
def test_an_address_that_no_server_can_have_is_wrong_usage(url: str) -> None:
    answer = cynosure("models", "--url", url)
    assert answer.returncode == 2
    assert f"'{url}' is not the address of a server" in answer.stderr


def completed(*words: str, url: str = "http://127.0.0.1:9") -> list[str]:
    """What bash offers in place of the last word."""
    completing = {
        "COMP_WORDS": " ".join(["cynosure", *words]),
        "COMP_CWORD": str(len(words)),
        "_CYNOSURE_COMPLETE": "complete_bash",
    }
    environment = clean_environment(CYNOSURE_URL=url, **completing)
    answer = subprocess.run([CYNOSURE], env=environment, capture_output=True, text=True, timeout=60)
    return [line for line in answer.stdout.splitlines() if line]


def test_shells_complete_commands_options_and_values(server_url: str) -> None:
    assert completed("up", "--p") == ["--port"]
    assert completed("worker", "--precision", "bf") == ["bfloat16"]
    assert completed("generate", "--sampler", "dpmpp_3") == ["dpmpp_3m"], "no server: one that is known anyway"
    assert completed("generate", "--label", "tw") == ["twemoji"], "no server: the bundled models"
    assert completed("generate", "--label", "tw", url=server_url) == [], "the server's own models"
    assert completed("sweep", "--labels", "bag,an", url=server_url) == ["bag,ankle\\ boot"]
    assert completed("plan", "class_") == ["class_label="]


def test_a_service_gets_the_options_of_its_command(server_url: str, tmp_path: Path) -> None:
    port = server_url.rpartition(":")[2]
    answer = cynosure("up", "--port", port, "--data", str(tmp_path))
    assert answer.returncode == os.EX_CONFIG
    assert f"127.0.0.1:{port}" in answer.stderr, "it is taken"
    wrong = cynosure("worker", "--packs", "fashion")
    assert wrong.returncode == 2
    assert "No such option: --packs" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--steps", "3", "--set", "steps=2"], "'steps' is given twice"),
        (["-o", __file__], "is a file"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_drawn(arguments: list[str], says: str) -> None:
    answer = cynosure("generate", "--label", "bag", *arguments)
    assert answer.returncode == 2
    assert says in answer.stderr


def test_no_server_is_said(tmp_path: Path) -> None:
    answer = cynosure("generate", "--label", "bag", "-o", str(tmp_path))
    assert answer.returncode == 3
    assert "Is `cynosure up` running?" in answer.stderr
