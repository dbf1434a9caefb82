"""What a crash, a restart and a Ctrl-C do to accepted jobs: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cynosure.client import Client
from cynosure.contract import GenerateRequest, JobStatus
from tests.conftest import clean_environment, free_port, is_ready, wait_until

LONG = GenerateRequest(class_label="bag", steps=100, num_images=3, seed=4)


class Up:
    """A `cynosure up` of its own, with short leases."""

    def __init__(self, data: Path, *options: str, **environment: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "app.up", "--port", str(port), "--data", str(data), *options]
        quick = {"CYNOSURE_LEASE_S": "2", "CYNOSURE_WORKER_REAP_EVERY_S": "0.5"}
        self.process = subprocess.Popen(command, env=clean_environment(**quick, **environment))

    def wait_ready(self) -> None:
        wait_until(lambda: is_ready(self.url), what="ready")

    def child(self, module: str) -> int:
        """Process id of the child that runs `module`."""
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            for pid in (task / "children").read_text().split():
                if f"-m\0{module}\0" in Path(f"/proc/{pid}/cmdline").read_text():
                    return int(pid)
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


def test_a_stop_keeps_what_was_accepted_and_leaves_nothing_behind(tmp_path: Path) -> None:
    first = Up(tmp_path, CYNOSURE_WORKER_DRAIN_S="0")
    first.wait_ready()
    children = [first.child("app"), first.child("workers")]
    with Client(first.url) as client:
        job = client.submit(LONG)
    assert first.stop() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    second = Up(tmp_path)
    try:
        second.wait_ready()
        with Client(second.url) as client:
            assert client.wait(job.id).status is JobStatus.SUCCEEDED
    finally:
        second.stop()


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
