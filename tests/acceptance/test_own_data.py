"""The tutorial of docs/own-data.md, command by command, on a few pictures and for a few steps."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from PIL import Image

from harness.processes import clean_environment
from tests.acceptance.test_cli import cynosure
from tests.acceptance.test_survival import Up

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs/own-data.md"
SHORT = {
    "docs/examples/shapes.py": ("--count", "12"),
    "train folder": ("--steps", "2", "--batch", "4"),
    "train classifier": ("--steps", "2", "--batch", "4"),
    "evaluate": ("-n", "4", "--steps", "2", "--scales", "2"),
    "generate": ("--steps", "2",),
}  # fmt: skip
"""What is added to commands, by how they begin, so that they take seconds."""


def tutorial() -> list[list[str]]:
    """The commands of the first section, without the folder of the installed program."""
    first = TUTORIAL.read_text().split("\n## ")[1]
    lines = [line for block in re.findall(r"```sh\n(.*?)```", first, re.DOTALL) for line in block.splitlines()]
    return [shlex.split(line.replace(".venv/bin/", ""), comments=True) for line in lines if line]


def test_the_tutorial_makes_a_guided_service(tmp_path: Path) -> None:
    commands = tutorial()
    begun = [" ".join(command[1:3]) if command[0] == "cynosure" else command[1] for command in commands]
    assert begun == [
        "docs/examples/shapes.py",
        "train folder",
        "train classifier",
        "evaluate shapes-guided",
        "up --models",
        "generate --label",
    ]
    tools = {"python": sys.executable, "cynosure": str(Path(sys.executable).with_name("cynosure"))}
    for command in commands[:4]:
        added = next(options for start, options in SHORT.items() if start in " ".join(command))
        own = [str(ROOT / part) if part.startswith("docs/examples") else part for part in command[1:]]
        answer = subprocess.run(
            [tools[command[0]], *own, *added],
            cwd=tmp_path,
            env={**clean_environment(), "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert answer.returncode == 0, answer.stderr
    with Image.open(tmp_path / "dial.png") as plot:
        assert plot.width > 1000
    served = tmp_path / commands[4][commands[4].index("--models") + 1]
    with Up(tmp_path / "data", models=str(served)) as server:
        drawn = cynosure(*commands[5][1:], *SHORT["generate"], "-o", str(tmp_path / "out"), url=server.url)
        assert drawn.returncode == 0, drawn.stderr
    [picture] = (tmp_path / "out").glob("*.png")
    with Image.open(picture) as image:
        assert image.size == (32, 32)
