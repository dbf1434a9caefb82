"""The short form of `make chaos`: a killed store, a paused worker, a killed gateway and a poison job; a fail-over."""

from __future__ import annotations

from pathlib import Path

from chaos.books import table
from chaos.scenarios import everything_at_once, failed_over
from chaos.trial import Scale


def test_nothing_accepted_is_lost_or_done_twice(small_pack: Path) -> None:
    result = everything_at_once(Scale(factor=0.5, seed=3, models=str(small_pack)))
    assert result.holds, f"\n{table([result])}\n{result}"


def test_jobs_before_during_and_after_a_fail_over_all_end(small_pack: Path) -> None:
    result = failed_over(Scale(factor=0.17, seed=5, models=str(small_pack)))
    assert result.holds, f"\n{table([result])}\n{result}"
