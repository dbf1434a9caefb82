"""The supervisor of one machine: how soon it starts again what has ended."""

from __future__ import annotations

import pytest

from app import up
from chaos.processes import clean_environment


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
