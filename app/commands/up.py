"""`python -m app.commands.up`: run and supervise store, workers and gateway on one machine."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal
from urllib.request import getproxies

import httpx
import redis
import typer

from app.commands.children import STOP_SIGNALS, Child, end_with_parent, run, stop
from app.commands.devices import Place, places_for
from app.commands.keys import NO_CREDENTIALS, URL_FILE
from app.gateway.outbound import OutboundSettings
from app.gateway.settings import GatewaySettings
from app.listening import CannotListen, listening
from cynosure.addresses import host_and_port
from cynosure.contract import ModelCard, ModelList
from jobs.logs import LogSettings
from jobs.settings import MetricsSettings, StoreSettings
from jobs.starting import (
    InvalidSettings,
    log_to,
    read_settings,
    refusing,
    signal_name,
    unknown_variables,
    warn_of_unknown_variables,
)

MAX_SOCKET_PATH = 100  # AF_UNIX allows 107 bytes
LOOKS_APART = 5  # rounds of the supervisor
STORE_START_S = 60.0  # the store first reads its append-only file, which may be long
LOG_FILE = "valkey.log"
SETTINGS = (GatewaySettings, MetricsSettings, OutboundSettings, StoreSettings)
"""Those of the gateway and the store; a worker reads its own."""
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  where a gateway on every address is asked

log = logging.getLogger("up")


Gateways = Annotated[
    int, typer.Option(min=1, help="number of gateways, which share the port; each uses one core at most")
]
InsecureNoAuth = Annotated[bool, typer.Option("--insecure-no-auth", help="require no API key, whatever the address")]
Controls = Annotated[
    Path | None, typer.Option(help="folder of ControlNets that requests may name", show_default="CYNOSURE_CONTROLS")
]


def _socket_folder(data: Path) -> Path:
    return data if len(str(data / "valkey.sock")) <= MAX_SOCKET_PATH else Path(tempfile.mkdtemp(prefix="cynosure-"))


def _webhook_secret(data: Path) -> str:
    """This deployment's secret for signing webhooks, created at its first start."""
    path = data / "webhook-secret"
    if not path.exists() or not path.read_text():  # a kill between creating and writing it leaves it empty
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write("whsec_" + base64.b64encode(secrets.token_bytes(32)).decode())
    return path.read_text()


class _Stop(Exception):
    """A signal to stop arrived; the argument is its name."""


def _on_signal(number: int, frame: FrameType | None) -> None:
    raise _Stop(signal_name(number))


def _embedded_store(data: Path, environment: dict[str, str]) -> tuple[Child, Path]:
    """The store of this machine, with its data in a folder, and its socket; the environment gets its address.

    Raises:
        InvalidSettings: the folder can't be used.
    """
    for name in NO_CREDENTIALS:
        environment.pop(name.upper(), None)
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = _socket_folder(data) / "valkey.sock"
        environment["REDIS_URL"] = f"unix://{path}"
        (data / URL_FILE).write_text(environment["REDIS_URL"])
        environment.setdefault("CYNOSURE_GATEWAY_WEBHOOK_SECRET", _webhook_secret(data))
    except (OSError, UnicodeError) as error:
        raise InvalidSettings(f"can't use the data folder {data}: {error}; choose another with --data") from None
    arguments = ("--data", str(data), "--socket", str(path), "--log", str(data / LOG_FILE))
    return Child("app.commands.local_store", *arguments, environment=environment), path


def _wait_for_store(url: str, store: Child, data: Path) -> None:
    """Wait for the first answer of the embedded store.

    Raises:
        InvalidSettings: it ended, or did not answer in time.
    """
    until = time.monotonic() + STORE_START_S
    store.tend()
    with redis.Redis.from_url(url, retry=None) as client:  # the embedded store: a Unix socket, no password
        while store.is_running and time.monotonic() < until:
            with contextlib.suppress(redis.ConnectionError, redis.exceptions.BusyLoadingError):
                client.ping()
                return
            time.sleep(0.1)
    if store.has_refused:
        sys.exit(os.EX_CONFIG)
    written = data / LOG_FILE
    last = written.read_text(errors="replace").rstrip().rpartition("\n")[2] if written.exists() else "nothing"
    raise InvalidSettings(f"the job store did not start; the last line of {written}: {last}")


def _examples(url: str) -> Iterator[str]:
    """A curl command for every model, if models are listed without a key."""
    for card in _cards(url) or ():
        label = {"class_label": card.labels[-1]} if card.labels else {}
        condition = {"prompt": "a happy cat"} if card.takes_prompt else label
        body = json.dumps({"model": card.name, **condition})
        options = [
            "-H",
            "Content-Type: application/json",
            "-H",
            "Accept: image/png",
            "-d",
            body,
            "-o",
            f"{card.name}.png",
        ]
        direct = ["--noproxy", "*"] if getproxies() else []
        yield "  " + shlex.join(["curl", "-s", *direct, f"{url}/generate", *options])


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
        return httpx.get(url, timeout=10, trust_env=False)  # a proxy would look for this machine's gateway on its own
    return None


def _supervise(children: list[Child], url: str) -> None:
    steps = _announced(url)
    while True:
        for child in children:
            child.tend()
        next(steps, None)
        time.sleep(0.3)


def _announced(url: str) -> Iterator[None]:
    """Poll, at each step, until the service is ready and then until its models are benchmarked; log both once."""
    while (answer := _answer(f"{url}/readyz")) is None or not answer.is_success:
        yield
    log.info("Cynosure is ready at %s (API: %s/docs)", url, url)
    if LogSettings().format == "console":
        print(*_examples(url), sep="\n", flush=True)
    if _is_measured(url) is False:
        log.info("benchmarking batch sizes between requests; until that is done, pictures take longer")
        while not _is_measured(url):
            for _ in range(LOOKS_APART):
                yield
        log.info("benchmarking is done; batches run at full speed")


command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@command.command()
def main(
    host: Annotated[
        str | None, typer.Option(help="address to listen on", show_default="CYNOSURE_GATEWAY_HOST, or 127.0.0.1")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 8000,
    gateways: Gateways = 1,
    data: Annotated[Path, typer.Option(help="folder for the data of the embedded store")] = Path("data"),
    devices: Annotated[
        str | None,
        typer.Option(
            help="what to draw on: auto (all GPUs, or else the CPU), cpu, or names such as cuda:0,cuda:1 or MIG-…",
            show_default="CYNOSURE_WORKER_DEVICE, or auto",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="number of workers, which share the devices", show_default="one for each")
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            help="model packs to load, separated by commas: names, folders, or NAME=FOLDER",
            show_default="fashion,emoji",
        ),
    ] = None,
    quantize: Annotated[
        Literal["int8"] | None, typer.Option(help="int8 weights in the linear layers of denoisers and text encoders")
    ] = None,
    offload: Annotated[
        bool, typer.Option("--offload", help="on CUDA, keep weights in the host's memory until their layer runs")
    ] = False,
    loras: Annotated[
        Path | None, typer.Option(help="folder of LoRAs that requests may name", show_default="CYNOSURE_LORAS")
    ] = None,
    controls: Controls = None,
    insecure_no_auth: InsecureNoAuth = False,
    with_parent: Annotated[
        bool, typer.Option("--with-parent", help="stop when the process that started this one ends")
    ] = False,
) -> None:
    """Run the store, the workers and the gateway on this machine; Ctrl-C stops them all."""
    if with_parent:
        end_with_parent()
    chosen = ["--share-port"] * (gateways > 1) + ["--insecure-no-auth"] * insecure_no_auth
    with refusing("cynosure up", InvalidSettings, CannotListen):
        log_to(sys.stdout)
        warn_of_unknown_variables(*SETTINGS)
        address = _checked_host(host, port)
        places = places_for(devices, workers)
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP; keep it ignored
                signal.signal(number, _on_signal)
        _run(
            data.resolve(),
            gateway=["app", "--host", address, "--port", str(port), *chosen],
            gateways=gateways,
            worker=["workers", *_options(models, quantize, offload, loras, controls)],
            places=places,
            url=f"http://{host_and_port(WILDCARDS.get(address, address), port)}",
        )


def _options(
    models: str | None, quantize: str | None, offload: bool, loras: Path | None, controls: Path | None
) -> list[str]:
    """Those of every worker."""
    options = ["--models", models] if models is not None else []
    options += ["--quantize", quantize] if quantize is not None else []
    options += ["--offload"] if offload else []
    options += ["--loras", str(loras.resolve())] if loras is not None else []
    return options + (["--controls", str(controls.resolve())] if controls is not None else [])


def _checked_host(host: str | None, port: int) -> str:
    """The address to listen on, after everything was checked that can be checked before anything starts.

    Raises:
        InvalidSettings, CannotListen: it can't run like this.
    """
    read_settings(OutboundSettings)
    read_settings(StoreSettings, **({} if "REDIS_URL" in os.environ else NO_CREDENTIALS))
    given = {} if host is None else {"host": host}
    checked = read_settings(GatewaySettings, **given).host
    for probe in listening(checked, port):
        probe.close()
    return checked


def _with_metrics_port(environment: dict[str, str], number: int) -> dict[str, str]:
    """The environment of a gateway or, after these, a worker: the setting names the first one's port."""
    port = read_settings(MetricsSettings).port
    return environment if port is None else {**environment, "CYNOSURE_METRICS_PORT": str(port + number)}


def _run(
    data: Path, *, gateway: list[str], gateways: int, worker: list[str], places: Sequence[Place], url: str
) -> None:
    """Run the programs, each a module and its arguments, until a signal stops them; a worker at each place."""
    environment = {name: value for name, value in os.environ.items() if name not in unknown_variables(*SETTINGS)}
    stores: list[Child] = []
    others: list[Child] = []
    folders: list[Path] = []
    try:
        if code := run(*worker, "--check", environment=environment):
            sys.exit(code)
        is_embedded = "REDIS_URL" not in environment
        first = "the job store, " if is_embedded else ""
        told = "the gateway" if gateways == 1 else _count(gateways, "gateway")
        log.info("starting %s%s and %s", first, told, _count(len(places), "worker"))
        if is_embedded:
            store, socket = _embedded_store(data, environment)
            stores, folders = [store], [socket.parent]
            _wait_for_store(environment["REDIS_URL"], store, data)
            log.info("the job store is up; loading the models")
        others = [
            Child(
                *gateway,
                environment=_with_metrics_port(environment, number),
                name=f"gateway {number + 1}" if gateways > 1 else None,
            )
            for number in range(gateways)
        ]
        others += [
            Child(
                *worker,
                "--supervised",
                *place.arguments,
                environment=_with_metrics_port({**environment, **place.variables}, gateways + number),
                name=f"worker {number + 1}" if len(places) > 1 else "the worker",
                cpus=place.cpus,
                may_end=True,
            )
            for number, place in enumerate(places)
        ]
        _supervise([*stores, *others], url)
    except _Stop as cause:
        log.info("%s: stopping", cause)
    finally:
        stop(others)
        stop(stores)  # last, so that the jobs that workers hand back are written
        for folder in folders:
            if folder != data:
                shutil.rmtree(folder, ignore_errors=True)
    log.info("stopped")


if __name__ == "__main__":
    command(prog_name="cynosure up")
