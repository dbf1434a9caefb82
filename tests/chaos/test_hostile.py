"""The short form of scenario 8: no fault of the server, no death, no growth, and nobody is let in."""

from __future__ import annotations

from pathlib import Path

from chaos.besieged import besieged


def test_no_request_breaks_the_server_or_gets_in(small_pack: Path, is_full: bool) -> None:
    result = besieged(1000 if is_full else 300, 1, str(small_pack))
    assert result.faults == []
    assert result.holds, result
    assert result.answers.keys() >= {202, 400, 401, 404, 422}, "the attack has reached what it is for"
