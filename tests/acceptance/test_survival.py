"""What a crash, a restart and a Ctrl-C do to accepted jobs: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.processes import clean_environment, free_port, is_ready, wait_until
from cynosure.client import Client
from cynosure.contract import GenerateRequest, JobStatus

LONG = GenerateRequest(class_label="bag", steps=100, num_images=3, seed=4)


class Up:
    """A `cynosure up` of its own, with short leases; `models=None` leaves to it what it serves."""

    def __init__(self, data: Path, *options: str, models: str | None = "fashion", **environment: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        chosen = ["--models", models] if models else []
        command = [sys.executable, "-m", "app.up", "--port", str(port), "--data", str(data), *chosen, *options]
        quick = {"CYNOSURE_LEASE_S": "2", "CYNOSURE_WORKER_REAP_EVERY_S": "0.5"}
        self.process = subprocess.Popen(command, env=clean_environment(**quick, **environment))

    def wait_ready(self) -> None:
        wait_until(lambda: is_ready(self.url), what="ready")

    def children(self) -> list[int]:
        """Process ids of the store, the gateway and the workers."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]

    def child(self, module: str) -> int:
        """Process id of the child that runs `module`."""
        for pid in self.children():
            if f"-m\0{module}\0" in Path(f"/proc/{pid}/cmdline").read_text():
                return pid
        raise AssertionError(f"no child runs {module}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    server = Up(tmp_path, CYNOSURE_WORKER_DRAIN_S="0.5")
    try:
        server.wait_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "drained"])
def test_a_workers_end_loses_no_job_and_changes_no_byte(up: Up, server_url: str, how: signal.Signals) -> None:
    with Client(up.url) as client:
        job = client.submit(LONG)
        wait_until(lambda: client.job(job.id).step > 0, what="the job is on its way")
        os.kill(up.child("workers"), how)
        done = client.wait(job.id)
    assert done.attempt >= 2  # more where the machine stalls for longer than the short lease
    with Client(server_url) as elsewhere:
        undisturbed = elsewhere.wait(elsewhere.submit(LONG).id)
    assert [image.sha256 for image in done.images] == [image.sha256 for image in undisturbed.images]


def is_gone(pid: int) -> bool:
    """Whether the process has ended; one that nobody has waited for yet has."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_stop_keeps_what_was_accepted_and_neither_it_nor_a_kill_leaves_anything_behind(tmp_path: Path) -> None:
    first = Up(tmp_path, CYNOSURE_WORKER_DRAIN_S="3600")
    first.wait_ready()
    children = first.children()
    assert len(children) == 3
    with Client(first.url) as client:
        job = client.submit(LONG.model_copy(update={"steps": 1000}))
        wait_until(lambda: client.job(job.id).step > 0, what="the job is on its way")
    first.process.send_signal(signal.SIGINT)
    wait_until(lambda: is_gone(children[1]), what="the first signal has reached the gateway")
    assert first.stop() == 0, "the second one does not wait for the job"
    assert all(map(is_gone, children))
    assert not (tmp_path / "valkey.sock").exists()

    second = Up(tmp_path)
    second.wait_ready()
    children = second.children()
    with Client(second.url) as client:
        wait_until(lambda: client.job(job.id).attempt > 1, what="the job goes on")
        assert client.job(job.id).attempts[0].outcome == "handed_back"
        assert client.cancel(job.id).status is JobStatus.CANCELLED
    intruder = Up(tmp_path)
    assert intruder.process.wait(60) == os.EX_CONFIG, "the folder is taken"
    second.process.kill()
    second.process.wait()
    wait_until(lambda: all(map(is_gone, children)), what="no child outlives the supervisor")
    assert not (tmp_path / "valkey.sock").exists()


def test_a_taken_port_is_said_and_nothing_starts(server_url: str, tmp_path: Path) -> None:
    port = server_url.rpartition(":")[2]
    answer = subprocess.run(
        [sys.executable, "-m", "app.up", "--port", port, "--data", str(tmp_path)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 1
    assert f"can't listen on 127.0.0.1:{port}" in answer.stderr
    assert "--port" in answer.stderr
    assert not list(tmp_path.iterdir())
