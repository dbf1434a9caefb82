"""Each contender as processes with an address; those not under test are paused by SIGSTOP, or not running."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import psutil
import torch

from benchmarks.stream import Asked
from cynosure.programs import program
from harness.processes import ROOT, free_port, is_ready, wait_until
from models.lanes import CORES
from models.pack import Pack

CPU = torch.device("cpu")
START_TIMEOUT_S = 900.0  # compiled kernels take a while


class Contender:
    """A system under test. On a GPU it is restarted for every turn, because a paused one would keep its memory."""

    def __init__(
        self,
        name: str,
        commands: list[list[str]],
        environment: dict[str, str],
        *,
        health: str,
        device: torch.device = CPU,
    ) -> None:
        self.name, self.device = name, device
        self.commands, self.environment = commands, environment
        self.port = int(commands[0][-1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.health = health
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the contender may be started
        self.start()

    def start(self) -> None:
        self.is_warm = False
        self.log.seek(0)
        self.log.truncate()
        self.processes = [
            subprocess.Popen(
                program(*command),
                env=os.environ | {"PYTHONPATH": str(ROOT)} | self.environment,
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=self.log,
            )
            for command in self.commands
        ]

    def wait_ready(self) -> None:
        wait_until(self._is_ready, seconds=START_TIMEOUT_S, what=f"{self.name} is ready")

    def _is_ready(self) -> bool:
        if any(process.poll() is not None for process in self.processes):
            self.log.seek(0)
            raise RuntimeError(f"{self.name} has ended: {self.log.read().decode(errors='replace')[-2000:]}")
        return is_ready(self.url, self.health)

    def members(self) -> list[psutil.Process]:
        """All processes, including children."""
        members: list[psutil.Process] = []
        for process in self.processes:
            if psutil.pid_exists(process.pid):
                parent = psutil.Process(process.pid)
                members += [parent, *parent.children(recursive=True)]
        return members

    def signal(self, number: signal.Signals) -> None:
        for member in self.members():
            member.send_signal(number)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run this contender inside the context; outside it is paused or stopped."""
        if not self.processes:
            self.start()
        self.signal(signal.SIGCONT)
        try:
            self.wait_ready()  # a worker that was paused for minutes has to register again
            yield
        finally:
            if self.device.type == "cpu":
                self.signal(signal.SIGSTOP)
            else:
                self.close()

    def close(self) -> None:
        members = self.members()
        self.signal(signal.SIGCONT)
        for member in members:
            member.terminate()
        _, alive = psutil.wait_procs(members, timeout=10)
        for member in alive:
            member.kill()
        self.processes = []

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time by module."""
        spent: dict[str, float] = {}
        for member in self.members():
            words = member.cmdline()
            name = words[words.index("-m") + 1] if "-m" in words else words[0] if words else "?"
            times = member.cpu_times()
            spent[name] = spent.get(name, 0.0) + times.user + times.system
        return spent

    def peak_mib(self) -> float:
        """Sum of all processes' peak resident memory so far."""
        statuses = [Path(f"/proc/{member.pid}/status").read_text() for member in self.members()]
        peaks = [re.search(r"VmHWM:\s+(\d+) kB", status) for status in statuses]
        return sum(int(peak.group(1)) for peak in peaks if peak) / 1024

    async def draw(self, client: httpx.AsyncClient, asked: Asked) -> int:
        """Send one request and read its pictures; returns their number."""
        answer = await client.post(f"{self.url}/draw", json=asked.as_json())
        answer.raise_for_status()
        return len(answer.json())


class Cynosure(Contender):
    """Cynosure's gateway and one worker."""

    def __init__(
        self, redis_url: str, pack: Pack, device: torch.device, *, name: str = "cynosure", compiling: bool = False
    ) -> None:
        environment = {
            "REDIS_URL": redis_url,
            "CYNOSURE_GATEWAY_MAX_WAIT_S": "3600",
            "CYNOSURE_WORKER_COMPILE": str(compiling),
        }
        port = str(free_port())
        worker = ["workers", "--models", str(pack.folder), "--device", str(device)]
        super().__init__(name, [["app", "--port", port], worker], environment, health="/readyz", device=device)

    def wait_ready(self) -> None:
        super().wait_ready()
        wait_until(self._is_measured, seconds=START_TIMEOUT_S, what=f"{self.name} has measured its batches")

    def _is_measured(self) -> bool:
        models = httpx.get(f"{self.url}/models", timeout=30, trust_env=False).json()["models"]
        return all(card["measured"] for card in models)

    async def draw(self, client: httpx.AsyncClient, asked: Asked) -> int:
        answer = await client.post(f"{self.url}/generate", json=asked.body(), headers={"Prefer": "wait=3600"})
        answer.raise_for_status()
        images = answer.json()["images"]
        for image in images:
            (await client.get(self.url + image["url"])).raise_for_status()
        return len(images)


def peers(redis_url: str, pack: Pack, device: torch.device) -> dict[str, Callable[[], Contender]]:
    """Functions that start contenders (c), (d) and (e), in the number format by rule; (c) and (e) in float32 too.

    Their networks run by Python, as a user's would, but one of (e)'s runs them as Cynosure's graphs.

    On a CPU their classifier runs in float32, the fastest format for a single row.
    """
    ports = [str(free_port()) for _ in range(6)]
    shared = {"CYNOSURE_BENCH_PACK": str(pack.folder), "CYNOSURE_BENCH_DEVICE": str(device)}
    shared["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin while they wait collapse when anything else runs
    one_thread = {"OMP_NUM_THREADS": "1"} if device.type == "cpu" else {}  # of each Celery process: a core has one
    celery_urls = [{"REDIS_URL": redis_url.removesuffix("/0") + f"/{number}"} | one_thread for number in (1, 3, 4)]
    float32 = {"CYNOSURE_BENCH_FLOAT32": "true"}
    processes = str(CORES if device.type == "cpu" else 2)
    worker = ["celery", "-A", "benchmarks.peers.tasks:queue", "worker", "-c", processes, "--loglevel", "ERROR"]
    locked, lit, tasks, plain_locked, plain_tasks, graph_tasks = (
        [f"benchmarks.peers.{name}", port]
        for name, port in zip(("locked", "lit", "tasks", "locked", "tasks", "tasks"), ports, strict=True)
    )
    started: dict[str, tuple[list[list[str]], dict[str, str]]] = {
        "a lock": ([locked], {}),
        "a lock, float32": ([plain_locked], float32),
        "LitServe": ([lit], {}),
        "a Celery task each": ([tasks, worker], celery_urls[0]),
        "a Celery task each, graphs": ([graph_tasks, worker], celery_urls[2] | {"CYNOSURE_BENCH_GRAPHS": "true"}),
        "a Celery task each, float32": ([plain_tasks, worker], celery_urls[1] | float32),
    }
    return {
        name: partial(Contender, name, commands, shared | own, health="/health", device=device)
        for name, (commands, own) in started.items()
    }
