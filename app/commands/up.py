"""`python -m app.commands.up`: run and supervise store, workers and gateway on one machine."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

import httpx
import redis
import typer

from app.commands.keys import URL_FILE
from cynosure.contract import ModelCard, ModelList

MAX_SOCKET_PATH = 100  # AF_UNIX allows 107 bytes
STOP_GRACE_S = 30.0
HURRY_S = 5.0  # after a second signal
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # prctl(2)
FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 30.0
STEADY_S = 60.0  # an exit after this much uptime resets the back-off
LOOKS_APART = 5  # rounds of the supervisor
STORE_START_S = 60.0  # the store first reads its append-only file, which may be long


_LIBC = ctypes.CDLL(None, use_errno=True)


def _end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent ends for any reason."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class Child:
    """A supervised process: if it exits by itself, it is restarted with exponential back-off."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.command = [sys.executable, "-m", *arguments]
        self.environment = environment
        self.backoff_s = FIRST_BACKOFF_S
        self.started_at = 0.0
        self.restart_at = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def tend(self) -> None:
        if self.process is not None and self.process.poll() is not None:
            if self.process.returncode == os.EX_CONFIG:  # it has printed why, and a restart would end the same way
                sys.exit(os.EX_CONFIG)
            print(f"{self.command[2]} exited with code {self.process.returncode}; restarting it", file=sys.stderr)
            self.process = None
            if time.monotonic() - self.started_at >= STEADY_S:
                self.backoff_s = FIRST_BACKOFF_S
            self.restart_at = time.monotonic() + self.backoff_s
            self.backoff_s = min(MAX_BACKOFF_S, 2 * self.backoff_s)
        if self.process is None and time.monotonic() >= self.restart_at:
            # In its own session: the terminal's Ctrl-C reaches only the supervisor, which stops the children in order.
            # If the supervisor is killed, no child outlives it. It has a single thread, so preexec_fn is safe.
            self.started_at = time.monotonic()
            self.process = subprocess.Popen(
                self.command, env=self.environment, start_new_session=True, preexec_fn=_end_with_parent
            )

    def stop(self) -> None:
        if self._running is not None:
            self._running.terminate()

    @property
    def is_running(self) -> bool:
        return self._running is not None

    def kill(self) -> None:
        if (process := self._running) is not None:
            process.kill()
            process.wait()

    @property
    def _running(self) -> subprocess.Popen[bytes] | None:
        return self.process if self.process is not None and self.process.poll() is None else None


def _refuse_taken_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            sys.exit(f"cynosure up: can't listen on {host}:{port}: {error.strerror}. Choose another with --port.")


def _socket_folder(data: Path) -> Path:
    return data if len(str(data / "valkey.sock")) <= MAX_SOCKET_PATH else Path(tempfile.mkdtemp(prefix="cynosure-"))


def _webhook_secret(data: Path) -> str:
    """This deployment's secret for signing webhooks, created at its first start."""
    path = data / "webhook-secret"
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write("whsec_" + base64.b64encode(secrets.token_bytes(32)).decode())
    return path.read_text()


class _Stop(Exception):
    """A signal to stop arrived; the argument is its name."""


def _on_signal(number: int, frame: FrameType | None) -> None:
    raise _Stop(signal.Signals(number).name)


def _wait_for_store(url: str, store: Child) -> None:
    until = time.monotonic() + STORE_START_S
    with redis.Redis.from_url(url, retry=None) as client:  # the embedded store: a Unix socket, no password
        while True:
            store.tend()
            try:
                client.ping()
                return
            except (redis.ConnectionError, redis.exceptions.BusyLoadingError) as error:
                if time.monotonic() > until:
                    sys.exit(f"cynosure up: no answer from the store at {url}: {error}")
                time.sleep(0.1)


def _examples(url: str) -> Iterator[str]:
    """A curl command for every model, if models are listed without a key."""
    for card in _cards(url) or ():
        label = {"class_label": card.labels[-1]} if card.labels else {}
        condition = {"prompt": "a happy cat"} if card.takes_prompt else label
        body = shlex.quote(json.dumps({"model": card.name, **condition}))
        headers = "-H 'Content-Type: application/json' -H 'Accept: image/png'"
        yield f"  curl -s {url}/generate {headers} -d {body} -o {card.name}.png"


class Progress:
    """Prints progress messages with the seconds since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def say(self, message: str) -> None:
        print(f"[{time.monotonic() - self._started:5.1f} s] {message}", flush=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _is_measured(url: str) -> bool | None:
    """Whether the workers have benchmarked every model; `None` if the server tells that only with a key."""
    cards = _cards(url)
    if cards is None:
        return None
    return bool(cards) and all(card.measured for card in cards)


def _cards(url: str) -> Sequence[ModelCard] | None:
    """The models that are served; `None` if the server lists them only with a key."""
    answer = _answer(f"{url}/models")
    return ModelList.model_validate_json(answer.content).models if answer and answer.is_success else None


def _answer(url: str) -> httpx.Response | None:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=2)
    return None


def _supervise(children: list[Child], url: str, progress: Progress) -> None:
    steps = _announced(url, progress)
    while True:
        for child in children:
            child.tend()
        next(steps, None)
        time.sleep(0.3)


def _announced(url: str, progress: Progress) -> Iterator[None]:
    """Poll, at each step, until the service is ready and then until its models are benchmarked; print both once."""
    while (answer := _answer(f"{url}/readyz")) is None or not answer.is_success:
        yield
    progress.say(f"Cynosure is ready at {url} (API: {url}/docs)")
    print(*_examples(url), sep="\n", flush=True)
    if _is_measured(url) is False:
        progress.say("benchmarking batch sizes between requests; until that is done, pictures take longer")
        while not _is_measured(url):
            for _ in range(LOOKS_APART):
                yield
        progress.say("benchmarking is done; batches run at full speed")


def _stop(children: list[Child]) -> None:
    """Stop gracefully. A further signal is passed on, and makes workers hand back at once the jobs that they hold."""
    until = time.monotonic() + STOP_GRACE_S

    def hurry(number: int, frame: FrameType | None) -> None:
        nonlocal until
        until = min(until, time.monotonic() + HURRY_S)
        for child in children:
            child.stop()

    for number in STOP_SIGNALS:
        signal.signal(number, hurry)
    for child in children:
        child.stop()
    while any(child.is_running for child in children) and time.monotonic() < until:
        time.sleep(0.05)
    for child in children:
        child.kill()


command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@command.command()
def main(
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 8000,
    data: Annotated[Path, typer.Option(help="folder for the data of the embedded store")] = Path("data"),
    workers: Annotated[int, typer.Option(min=0, help="number of workers")] = 1,
    models: Annotated[
        str | None, typer.Option(help="model packs to load, separated by commas", show_default="fashion,emoji")
    ] = None,
    insecure_no_auth: Annotated[
        bool, typer.Option("--insecure-no-auth", help="require no API key, whatever the address")
    ] = False,
    with_parent: Annotated[
        bool, typer.Option("--with-parent", help="stop when the process that started this one ends")
    ] = False,
) -> None:
    """Run the store, the workers and the gateway on this machine; Ctrl-C stops them all."""
    _refuse_taken_port(host, port)
    if with_parent:
        _end_with_parent()
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP; keep it ignored
            signal.signal(number, _on_signal)

    environment = dict(os.environ)
    stores: list[Child] = []
    path = Path()
    if "REDIS_URL" not in environment:
        data = data.resolve()
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = _socket_folder(data) / "valkey.sock"
        for name in ("REDIS_PASSWORD", "REDIS_PASSWORD_FILE", "REDIS_CA_FILE"):  # another store's; ours needs none
            environment.pop(name, None)
        environment["REDIS_URL"] = f"unix://{path}"
        (data / URL_FILE).write_text(environment["REDIS_URL"])
        environment.setdefault("CYNOSURE_GATEWAY_WEBHOOK_SECRET", _webhook_secret(data))
        stores = [Child(["app.commands.local_store", "--data", str(data), "--socket", str(path)], environment)]
    auth = ["--insecure-no-auth"] if insecure_no_auth else []
    gateway = Child(["app", "--host", host, "--port", str(port), *auth], environment)
    packs = ["--models", models] if models else []
    crew = [Child(["workers", *packs], environment) for _ in range(workers)]
    progress = Progress()
    progress.say("starting the job store, the gateway and " + _count(workers, "worker"))
    try:
        for store in stores:
            _wait_for_store(environment["REDIS_URL"], store)
        progress.say("the job store is up; loading the models")
        reached = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104
        _supervise([*stores, gateway, *crew], f"http://{reached}:{port}", progress)
    except _Stop as stop:
        progress.say(f"{stop}: stopping")
    finally:
        _stop([gateway, *crew])
        _stop(stores)  # last, so that the jobs that workers hand back are written
        if stores and path.parent != data:
            shutil.rmtree(path.parent, ignore_errors=True)


if __name__ == "__main__":
    command(prog_name="cynosure up")
