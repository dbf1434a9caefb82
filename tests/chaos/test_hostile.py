"""The short form of scenario 8: no fault of the server, no death, no growth, and nobody is let in."""

from __future__ import annotations

from chaos.besieged import besieged

COUNT = 300


def test_no_request_breaks_the_server_or_gets_in() -> None:
    result = besieged(COUNT, 1)
    assert result.faults == []
    assert result.holds, result
    assert result.answers.keys() >= {202, 400, 401, 404, 422}, "the attack has reached what it is for"
