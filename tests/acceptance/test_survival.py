"""What a crash, a restart and a Ctrl-C do to accepted jobs: nothing."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from cynosure.client import Client
from cynosure.contract import GenerateRequest, JobStatus
from cynosure.errors import WorkerNotFound
from cynosure.programs import program
from harness.processes import clean_environment, free_port, wait_until, wait_until_ready

LONG = GenerateRequest(class_label="bag", steps=100, num_images=3, seed=4)
TOP = [str(Path(sys.executable).with_name("cynosure")), "top"]


class Up:
    """A `cynosure up` of its own, with short leases; use it as a context manager, which waits until it is ready.

    Args:
        models: the ones to serve; `None` leaves that to it.
    """

    def __init__(self, data: Path, *options: str, models: str | None = "fashion", **environment: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        chosen = ["--models", models] if models else []
        command = program(
            "app.commands.up", "--port", str(port), "--data", str(data), "--devices", "cpu", *chosen, *options
        )
        quick = {"CYNOSURE_LEASE_S": "2", "CYNOSURE_WORKER_REAP_EVERY_S": "0.5"}
        self.process = subprocess.Popen(command, env=clean_environment(**quick, **environment))

    def __enter__(self) -> Up:
        try:
            wait_until_ready(self.url)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()

    def children(self) -> list[psutil.Process]:
        """The store, the gateway and the workers."""
        return psutil.Process(self.process.pid).children()

    def child(self, module: str) -> psutil.Process:
        """The child that runs `module`."""
        for child in self.children():
            if child.cmdline()[:4] == program(module):
                return child
        raise AssertionError(f"no child runs {module}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def up(small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with Up(tmp_path_factory.mktemp("up"), models=str(small_pack), CYNOSURE_WORKER_DRAIN_S="0.5") as server:
        yield server


@pytest.mark.parametrize(("how", "seed"), [(signal.SIGKILL, 4), (signal.SIGTERM, 5)], ids=["killed", "drained"])
def test_a_workers_end_loses_no_job_and_changes_no_byte(
    up: Up, server_url: str, how: signal.Signals, seed: int
) -> None:
    asked = LONG.model_copy(update={"seed": seed})  # the servers keep what they drew for the other end
    with Client(up.url) as client:
        job = client.submit(asked)
        wait_until(lambda: client.job(job.id).evaluations_done > 0, what="the job is on its way")
        up.child("workers").send_signal(how)
        done = client.wait(job.id)
    assert done.attempt >= 2  # more where the machine stalls for longer than the short lease
    with Client(server_url) as elsewhere:
        undisturbed = elsewhere.wait(elsewhere.submit(asked).id)
    assert [image.sha256 for image in done.images] == [image.sha256 for image in undisturbed.images]


def top_at(url: str, key: str, worker: str, pressed: bytes) -> int:
    """The exit code of `cynosure top` in a terminal where this key is pressed once it shows the worker."""
    variables = {"CYNOSURE_URL": url, "CYNOSURE_API_KEY": key, "TERM": "xterm", "COLUMNS": "200", "LINES": "20"}
    terminal, inside = pty.openpty()
    child = subprocess.Popen(TOP, env=clean_environment(**variables), preexec_fn=lambda: os.login_tty(inside))
    os.close(inside)
    shown, has_pressed = b"", False
    with suppress(OSError), open(terminal, "r+b", buffering=0) as screen:  # an error: the other side has closed it
        while part := screen.read(65536):
            shown += part
            if not has_pressed and worker.encode() in shown:
                has_pressed = bool(screen.write(pressed))
    assert has_pressed, shown
    return child.wait(60)


def test_a_drained_worker_loses_no_job_and_stays_away(small_pack: Path, tmp_path: Path) -> None:
    with Up(tmp_path, "--workers", "2", models=str(small_pack), CYNOSURE_WORKER_DRAIN_S="0.5") as up:
        create = program("app.commands.keys", "create", "--name", "t", "--scopes", "admin", "--data", str(tmp_path))
        key = subprocess.check_output(create, env=clean_environment(), text=True).strip()
        asking = clean_environment(CYNOSURE_URL=up.url, CYNOSURE_API_KEY=key)
        with Client(up.url, api_key=key) as client:
            wait_until(lambda: len(client.workers()) == 2, what="both workers serve")
            frame = subprocess.check_output(TOP, env=asking, text=True)
            names = [worker.name for worker in client.workers()]
            assert all(re.search(rf"^{name} .* cpu +fashion", frame, re.M) for name in names), frame
            assert re.search(r"^fashion +2 +\d", frame, re.M), frame
            longer = LONG.model_copy(update={"steps": 3 * LONG.steps})
            jobs = [client.submit(longer.model_copy(update={"seed": seed})) for seed in range(8)]
            wait_until(lambda: any(worker.jobs for worker in client.workers()), what="one holds jobs")
            drained, other = sorted(client.workers(), key=lambda worker: -worker.jobs)
            assert client.drain_worker(drained.name)
            assert [worker.name for worker in client.workers()] == [other.name]
            assert {len(client.wait(job.id).images) for job in jobs} == {LONG.num_images}
            assert any(attempt.outcome == "handed_back" for job in jobs for attempt in client.job(job.id).attempts)
            with pytest.raises(WorkerNotFound, match=other.name):
                client.drain_worker(drained.name)
            wait_until(lambda: len(up.children()) == 3, what="the supervisor has noticed")
            recent = client.status().models[0].recent
            assert recent is not None
            assert recent.jobs == len(jobs)
        assert [top_at(up.url, key, other.name, pressed) for pressed in (b"q", b"\x03")] == [0, 0]


def is_gone(process: psutil.Process) -> bool:
    """Whether the process has ended; one that nobody has waited for yet has."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_stop_keeps_what_was_accepted_and_neither_it_nor_a_kill_leaves_anything_behind(
    small_pack: Path, tmp_path: Path
) -> None:
    models = str(small_pack)
    with Up(tmp_path, models=models, CYNOSURE_WORKER_DRAIN_S="3600") as first, Client(first.url) as client:
        children = first.children()
        assert len(children) == 3
        job = client.submit(LONG.model_copy(update={"steps": 1000}))
        wait_until(lambda: client.job(job.id).evaluations_done > 0, what="the job is on its way")
        gateway = first.child("app")
        first.process.send_signal(signal.SIGINT)
        wait_until(lambda: is_gone(gateway), what="the first signal has reached the gateway")
        assert first.stop() == 0, "the second one does not wait for the job"
        assert all(map(is_gone, children))
        assert not (tmp_path / "valkey.sock").exists()

    with Up(tmp_path, models=models) as second, Client(second.url) as client:
        children = second.children()
        wait_until(lambda: client.job(job.id).attempt > 1, what="the job goes on")
        assert client.job(job.id).attempts[0].outcome == "handed_back"
        assert client.cancel(job.id).status is JobStatus.CANCELLED
        intruder = Up(tmp_path, models=models)
        assert intruder.process.wait(60) == os.EX_CONFIG, "the folder is taken"
        second.process.kill()
        second.process.wait()
        wait_until(lambda: all(map(is_gone, children)), what="no child outlives the supervisor")
        assert not (tmp_path / "valkey.sock").exists()


def test_a_taken_port_is_said_and_nothing_starts(server_url: str, tmp_path: Path) -> None:
    port = server_url.rpartition(":")[2]
    answer = subprocess.run(
        program("app.commands.up", "--port", port, "--data", str(tmp_path)),
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == os.EX_CONFIG
    assert f"can't listen on 127.0.0.1:{port}" in answer.stderr
    assert "--port" in answer.stderr
    assert not list(tmp_path.iterdir())
