"""The supervisor of one machine: what it tells, and how soon it starts again what has ended."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from PIL import Image

from app.commands import up
from harness.processes import clean_environment


def test_a_process_that_ran_steadily_is_not_held_to_ends_long_past(monkeypatch: pytest.MonkeyPatch) -> None:
    child = up.Child(["this"], clean_environment())  # it prints a poem and ends

    def end() -> float:
        child.restart_at = 0.0
        child.tend()
        assert child.process is not None
        child.process.wait()
        child.tend()
        return child.backoff_s

    assert [end() for _ in range(3)] == [2.0, 4.0, 8.0]
    monkeypatch.setattr(up, "STEADY_S", 0.0)
    assert end() == 2.0


def test_the_command_that_it_shows_draws_a_picture(server_url: str, tmp_path: Path) -> None:
    [example] = up._examples(server_url)
    subprocess.run(["sh", "-c", example], cwd=tmp_path, check=True, timeout=120)
    with Image.open(tmp_path / "fashion.png") as picture:
        assert picture.size == (28, 28)
