"""The example scripts, as a stranger would run them, against one server."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from PIL import Image

from harness.processes import clean_environment

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples"


def run(script: str, url: str, folder: Path) -> str:
    path = EXAMPLES / script
    command = [sys.executable, str(path)] if script.endswith(".py") else ["sh", str(path)]
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    answer = subprocess.run(
        [*command, url, str(folder)],
        env=clean_environment(PATH=search, COLUMNS="200"),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr


def formats(folder: Path, *names: str) -> list[str | None]:
    found = []
    for name in names:
        with Image.open(folder / name) as picture:
            found.append(picture.format)
    return found


def test_with_openais_package(server_url: str, tmp_path: Path) -> None:
    said = run("with_openai.py", server_url, tmp_path)
    assert formats(tmp_path, "sneaker-1.webp", "bag-partial-1.png", "bag.png") == ["WEBP", "PNG", "PNG"]
    assert "refused: prompt" in said
    assert "No class 'sneker'" in said
    assert formats(tmp_path, "recovered.png") == ["PNG"]


def test_with_the_clients(server_url: str, tmp_path: Path) -> None:
    said = run("with_sdk.py", server_url, tmp_path)
    assert formats(tmp_path, "sneaker-1.png", "bag.png", "recovered.png", "batch-3.png") == ["PNG"] * 4
    assert not (tmp_path / "batch-1.png").exists()
    assert said.count("30 of 30") == 2, "each client hears of the last step"
    assert "a preview of picture 0" in said
    assert "cancelled" in said
    assert said.count("refused") == 2


def test_with_curl(server_url: str, tmp_path: Path) -> None:
    said = run("with_curl.sh", server_url, tmp_path)
    assert formats(tmp_path, "sneaker.png", "sneaker.webp", "bag.png", "recovered.jpeg") == [
        "PNG",
        "WEBP",
        "PNG",
        "JPEG",
    ]
    assert said.splitlines()[-1].startswith("No class 'sneker'")
    assert "progress" in said
    assert "cancelled" in said
    with zipfile.ZipFile(tmp_path / "batch.zip") as files:
        assert len(files.namelist()) == 2


def test_with_the_command_line(server_url: str, tmp_path: Path) -> None:
    said = run("with_cli.sh", server_url, tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 3
    assert "again.png: the same bytes" in said
    assert "exit code 5: cancelled" in said
    assert "class_label: No class 'sneker'" in said
    assert (tmp_path / "recovered" / "5-00.png").exists()
