"""The official `openai` package of npm, unchanged, against a running service."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.processes import clean_environment
from tests.service.test_openai import picture

PACKAGE = "openai@6"  # 7 needs node 22
SCRIPT = Path(__file__).with_name("openai_client.mjs")


@pytest.fixture(scope="module")
def node_folder() -> Path:
    """A folder with the package in `node_modules`, kept for the next run."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node or npm is not installed")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "cynosure-tests" / PACKAGE
    if not (folder / "node_modules/openai/index.mjs").exists():
        folder.mkdir(parents=True, exist_ok=True)
        options = ["--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel", "error"]
        try:
            installed = subprocess.run(
                ["npm", "install", *options, PACKAGE], capture_output=True, text=True, timeout=60, check=False
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm can't install {PACKAGE} within a minute")
        if installed.returncode:
            pytest.skip(f"npm can't install {PACKAGE}: {installed.stderr[-200:]}")
    return folder


def test_the_package_draws_streams_edits_and_varies(node_folder: Path, server_url: str) -> None:
    answer = subprocess.run(
        ["node", "--input-type=module", "--eval", SCRIPT.read_text()],
        cwd=node_folder,  # packages are looked for from here
        env=clean_environment(CYNOSURE_URL=server_url),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    said = json.loads(answer.stdout)
    assert "fashion" in said["models"]
    assert said["events"] == [*["image_generation.partial_image"] * 2, "image_generation.completed"]
    assert said["refusal"] == [True, "prompt", "unknown_label"]
    assert [len(call) for call in said["pictures"]] == [2, 1, 2]
    assert {picture(one).size for call in said["pictures"] for one in call} == {(28, 28)}
