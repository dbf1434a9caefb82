"""Starts and stops processes; finds free ports, cleans environments, and waits for readiness."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
START_S = 120.0


def free_port(*, in_a_row: int = 1) -> int:
    """A TCP port that no process listens on, the first of so many in a row."""
    while True:
        with ExitStack() as opened:
            first = opened.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            with suppress(OSError, OverflowError):
                for following in range(port + 1, port + in_a_row):
                    opened.enter_context(socket.socket()).bind(("127.0.0.1", following))
                return port


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without Cynosure's and Redis's variables, so that a developer's settings have no effect.

    Programs of the checkout that are not installed (`chaos`, `benchmarks`) are found too.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("CYNOSURE_", "REDIS_"))}
    return kept | {"PYTHONPATH": str(ROOT)} | extra


def wait_until(condition: Callable[[], bool], *, seconds: float = START_S, what: str) -> float:
    """Wait until `condition` holds; returns the seconds waited.

    Raises:
        TimeoutError: it did not hold in time.
    """
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)
    return time.monotonic() - started


def is_ready(url: str, path: str = "/readyz") -> bool:
    """Whether a server reports that it is ready; a gateway needs its store and a worker for that."""
    try:
        return httpx.get(url + path, timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def wait_until_ready(url: str) -> None:
    """Wait until a gateway, with its worker, is ready.

    Raises:
        TimeoutError: it was not ready in time.
    """
    wait_until(lambda: is_ready(url), seconds=START_S, what=f"{url} is ready")


class Process:
    """A process and its log. It can be started again after it has ended."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], folder: Path) -> None:
        self.name = name
        self.command = command
        self.environment = environment
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def resident_mb(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def signal(self, number: signal.Signals) -> None:
        if self.is_alive:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def stop(self, seconds: float = 40.0) -> int:
        """Send SIGTERM and wait; returns the exit code."""
        assert self.process is not None
        self.signal(signal.SIGTERM)
        return self.process.wait(seconds)
