"""The commands for many pictures, for old pictures and for jobs, as a user types them."""

from __future__ import annotations

import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from cynosure import Client
from cynosure.batches import Batch, BatchCounts, BatchLinks, BatchResult, BatchStatus
from cynosure.cli.batch import _fetch
from cynosure.cli.main import app
from cynosure.contract import ImageInfo
from tests.acceptance.test_cli import cynosure


def test_batch_fetches_every_picture_and_started_again_fetches_none_twice(server_url: str, tmp_path: Path) -> None:
    lines = [{"class_label": n, "steps": 4, "seed": n, "num_images": 1 + n % 2} for n in range(6)]
    file, out = tmp_path / "many.ndjson", tmp_path / "out"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first = cynosure("batch", str(file), "-o", str(out), url=server_url)
    assert first.returncode == 0, first.stderr
    assert "9 pictures" in first.stdout
    pictures = sorted(out.glob("*.png"))
    assert len(pictures) == 9
    assert len((out / "results.ndjson").read_text().splitlines()) == 6
    pictures[0].unlink()
    times = {path: path.stat().st_mtime_ns for path in pictures[1:]}
    again = cynosure("batch", str(file), "-o", str(out), "--json", url=server_url)
    assert json.loads(again.stdout)["failed"] == 0
    assert pictures[0].exists()
    assert {path: path.stat().st_mtime_ns for path in pictures[1:]} == times


def test_batch_writes_samples_as_the_evaluator_of_guided_diffusion_reads_them(server_url: str, tmp_path: Path) -> None:
    file, out, npz = tmp_path / "some.ndjson", tmp_path / "out", tmp_path / "samples.npz"
    lines = [{"class_label": label, "steps": 4, "seed": 1, "num_images": 2} for label in (3, 0)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    answer = cynosure("batch", str(file), "-o", str(out), "--npz", str(npz), url=server_url)
    assert answer.returncode == 0, answer.stderr
    with zipfile.ZipFile(npz) as archive, archive.open("arr_0.npy") as stream:  # as evaluator.py streams it
        assert np.lib.format.read_magic(stream) == (1, 0)
        shape, is_fortran, kind = np.lib.format.read_array_header_1_0(stream)
        first = np.frombuffer(stream.read(28 * 28 * 3), kind).reshape(28, 28, 3)
    assert (shape, is_fortran, kind) == ((4, 28, 28, 3), False, np.uint8)
    loaded = np.load(npz)
    assert (loaded["arr_0"][0] == first).all()
    drawn = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(out.glob("*.png"))]
    assert (loaded["arr_0"] == np.stack(drawn)).all()
    assert loaded["arr_1"].tolist() == [3, 3, 0, 0]


def test_batch_takes_a_json_array(server_url: str, tmp_path: Path) -> None:
    file = tmp_path / "many.json"
    file.write_text(json.dumps([{"class_label": n, "steps": 4, "seed": n} for n in range(2)], indent=2))
    answer = cynosure("batch", str(file), "-o", str(tmp_path / "out"), url=server_url)
    assert answer.returncode == 0, answer.stderr
    assert "2 pictures" in answer.stdout


def test_batch_asks_for_no_line_that_waits(tmp_path: Path) -> None:
    """Thousands may wait, and it looks twice a second."""
    asked: list[range] = []

    class Server(Client):
        waiting = iter([600, 597, 0])

        def batch_status(self, batch_id: str) -> Batch:
            counts = BatchCounts(total=600, waiting=next(self.waiting))
            links = BatchLinks(self="", results="", images="")
            return Batch(id="b", status=BatchStatus.RUNNING, created_at=datetime.now(UTC), counts=counts, links=links)

        def batch_results(self, batch_id: str, *, first_line: int = 1, limit: int = 600) -> list[BatchResult]:
            asked.append(range(first_line, first_line + limit))
            return [
                BatchResult(line=line, status="running" if line == 2 < limit < 9 else "failed") for line in asked[-1]
            ]

    results = _fetch(Server(), "b", tmp_path, lambda pictures: None)
    assert asked == [range(1, 1), range(1, 4), range(2, 601)]
    assert [one.line for one in results] == list(range(1, 601))


class Drawn(Client):
    """A server that has drawn every batch already; each file that it gives names the batch, and is counted."""

    given = 0

    def submit_batch(self, requests: Any, *, idempotency_key: str | None = None) -> Batch:
        counts = BatchCounts(total=2, waiting=0, succeeded=2)
        links = BatchLinks(self="", results="", images="")
        name = requests.decode().strip()
        return Batch(id=name, status=BatchStatus.FINISHED, created_at=datetime.now(UTC), counts=counts, links=links)

    def batch_status(self, batch_id: str) -> Batch:
        return self.submit_batch(batch_id.encode())

    def batch_results(self, batch_id: str, *, first_line: int = 1, limit: int = 2) -> list[BatchResult]:
        image = ImageInfo(index=0, url=f"/{batch_id}.webp", seed=1, first_image=0, sha256="")
        return [BatchResult(line=line, status="succeeded", images=(image,)) for line in (1, 2)]

    def file(self, url: str) -> bytes:
        Drawn.given += 1
        return url.encode()


def test_batch_takes_no_other_batchs_pictures_for_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cynosure.cli.batch.Client", Drawn)
    monkeypatch.setattr(Drawn, "given", 0)
    out = tmp_path / "out"

    def draw(name: str) -> Result:
        file = tmp_path / f"{name}.ndjson"
        file.write_text(name)
        return CliRunner().invoke(app, ["batch", str(file), "-o", str(out), "--json"])

    assert (draw("a").exit_code, Drawn.given) == (0, 2)
    other = draw("b")
    assert other.exit_code == 1
    assert json.loads(other.stderr.splitlines()[-1])["error"]["field"] == "out"
    assert {path.read_text() for path in out.glob("*.webp")} == {"/a.webp"}
    assert (draw("a").exit_code, Drawn.given) == (0, 2), "started again it fetches nothing twice"


def test_batch_says_which_line_is_wrong(server_url: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.ndjson"
    file.write_text('{"class_label": 1}\n{"class_label": "sneker"}\n')
    answer = cynosure("batch", str(file), "-o", str(tmp_path), url=server_url)
    assert answer.returncode == 1
    assert "line 2: No class 'sneker'" in answer.stderr


def test_again_makes_the_same_bytes(server_url: str, tmp_path: Path) -> None:
    options = ["--label", "bag", "--steps", "5", "-n", "2", "--seed", "4", "--json"]
    made = json.loads(cynosure("generate", *options, "-o", str(tmp_path), url=server_url).stdout)
    answer = cynosure("again", made["files"][1], "--json", url=server_url)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found["same_bytes"] is True
    assert Path(found["file"]).read_bytes() == Path(made["files"][1]).read_bytes()
    varied = cynosure("again", made["files"][1], "--set", "seed=5", url=server_url)
    assert "the same bytes" not in varied.stdout


def test_jobs_are_listed_and_cancelled(server_url: str) -> None:
    with Client(server_url) as client:
        job = client.submit(class_label=1, steps=1000, num_images=8, use_cache=False)
    cancelled = cynosure("cancel", job.id, url=server_url)
    assert cancelled.stdout == f"{job.id} cancelled\n"
    listed = json.loads(cynosure("jobs", "--status", "cancelled", "--limit", "5", "--json", url=server_url).stdout)
    assert job.id in [one["id"] for one in listed["jobs"]]
    assert f"{job.id}\tcancelled\t" in cynosure("jobs", url=server_url).stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (["generate", "--label", "sneker"], 1, "unknown_label"),
        (["cancel", "nope"], 1, "job_not_found"),
        (["generate", "--label", "bag", "--url", "http://127.0.0.1:9"], 3, "unreachable"),
    ],
)
def test_errors_are_json_too_and_have_exit_codes(
    server_url: str, arguments: list[str], exit_code: int, code: str
) -> None:
    answer = cynosure(*arguments, "--json", url=server_url)
    assert answer.returncode == exit_code
    assert json.loads(answer.stderr.splitlines()[-1])["error"]["code"] == code


def test_a_shell_is_told_how_to_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # the tests may run under no shell
    answer = cynosure("--show-completion", "bash")
    assert "_CYNOSURE_COMPLETE" in answer.stdout + answer.stderr
