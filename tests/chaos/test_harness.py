"""The suite's own parts: what it must see of a server that loses jobs, and what it leaves behind."""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from chaos import house, scenarios, soak
from chaos.house import House
from chaos.traffic import Traffic
from chaos.trial import Scale
from tests.conftest import serving

Answers = Callable[[str], str | None]


def gateway(status_of: Answers, *, accepting: bool = True) -> type[BaseHTTPRequestHandler]:
    """A gateway that accepts jobs or says that it can't, and knows of each what `status_of` its id is."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(202 if accepting else 503, {"id": uuid.uuid4().hex})

        def do_GET(self) -> None:
            status = status_of(self.path.removeprefix("/jobs/"))
            self._answer(404 if status is None else 200, {"status": status, "eta_seconds": None})

        def _answer(self, status: int, body: object) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return Handler


@pytest.fixture
def soaked(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[BaseHTTPRequestHandler]], soak.Result]:
    """The books of ten jobs that a soak posted to a gateway."""
    monkeypatch.setattr(soak, "PATIENCE_S", 0.5)

    def books(handler: type[BaseHTTPRequestHandler]) -> soak.Result:
        with serving(handler) as url, Traffic([url], seed=1) as traffic:
            soak.load(traffic, rate=100, seconds=0.1)
            return soak.books_of(traffic)

    return books


def test_a_soak_holds_where_every_job_succeeds(soaked: Callable[..., soak.Result]) -> None:
    result = soaked(gateway(lambda job_id: "succeeded"))
    assert result.holds
    assert (result.accepted, result.finished_once) == (10, 10)


def test_a_soak_sees_jobs_that_do_not_end(soaked: Callable[..., soak.Result]) -> None:
    result = soaked(gateway(lambda job_id: "running"))
    assert (result.accepted, result.finished_once, result.stuck) == (10, 0, 10)
    assert not result.holds


def test_a_soak_sees_jobs_that_fail(soaked: Callable[..., soak.Result]) -> None:
    result = soaked(gateway(lambda job_id: "failed"))
    assert (result.accepted, result.finished_once, result.lost) == (10, 0, 10)
    assert not result.holds


def test_a_soak_sees_jobs_that_are_not_accepted(soaked: Callable[..., soak.Result]) -> None:
    result = soaked(gateway(lambda job_id: None, accepting=False))
    assert result.accepted == result.finished_once == 0
    assert len(result.faults) == 10
    assert "not accepted" in result.faults[0]
    assert not result.holds


def test_a_house_whose_store_does_not_answer_leaves_nothing_standing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "START_S", 0.5)
    closed = House(store_options={"requirepass": "not told to anyone"})
    assert closed.store.process is None, "building is not starting"
    with pytest.raises(TimeoutError, match="store"), closed:
        pass
    assert closed.store.process is not None
    assert not closed.store.is_alive
    assert not closed.folder.exists()


def test_a_disk_that_can_not_be_mounted_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = tmp_path / "mount"
    mount.write_text("#!/bin/sh\necho not here >&2\nexit 1\n")
    mount.chmod(0o755)
    folders = tmp_path / "folders"
    folders.mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(folders))
    assert "not here" in scenarios.disk_full(Scale()).skipped
    assert list(folders.iterdir()) == []
