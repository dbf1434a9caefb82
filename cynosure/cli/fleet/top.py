"""`cynosure top`: what the service does, as it does it."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cynosure.cli.shared import ApiKey, Url, refusing
from cynosure.client import DEFAULT_URL, Client
from cynosure.client.attempts import Retries
from cynosure.contract import ModelStatus, Priority, Quantiles, ServiceStatus, WorkerStatus
from cynosure.errors import CynosureError

ONE_TRY = Retries(times=0)
PLACES = (Priority.HIGH, Priority.NORMAL, Priority.LOW, "back_off", "suspect")
WIDTH = 240  # where there is no terminal: no cell is cut


@dataclass(frozen=True)
class Look:
    """What the server said at one moment."""

    service: ServiceStatus
    workers: tuple[WorkerStatus, ...]
    at: datetime


def top(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    every: Annotated[float, typer.Option(min=0.2, max=3600, help="seconds between looks")] = 2.0,
) -> None:
    """Show queues, workers and times, until q or Ctrl-C; once, if the output is no terminal. Takes an admin's key."""
    with refusing(), Client(url, api_key=api_key, timeout_s=10, retries=ONE_TRY) as client:
        look = _look(client)
        if not (sys.stdout.isatty() and sys.stdin.isatty()):
            Console(width=WIDTH).print(_frame(client.url, look))
            return
        with (
            suppress(KeyboardInterrupt),
            _keys(),
            Live(_frame(client.url, look), screen=True, auto_refresh=False) as live,
        ):
            while not _is_quit_within(every):
                trouble = None
                try:
                    look = _look(client)
                except CynosureError as error:  # it may come back
                    trouble = error.detail
                live.update(_frame(client.url, look, trouble), refresh=True)


def _look(client: Client) -> Look:
    workers = client.workers()  # first: it takes more of a key
    return Look(client.status(), workers, datetime.now().astimezone())


@contextmanager
def _keys() -> Iterator[None]:
    """Keys arrive as they are pressed, and are not shown."""
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _is_quit_within(seconds: float) -> bool:
    """Whether q is pressed, or the terminal goes, within this time."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0]:
            pressed = os.read(sys.stdin.fileno(), 1)
            if pressed in (b"q", b"Q", b""):
                return True
    return False


def _frame(url: str, look: Look, trouble: str | None = None) -> RenderableType:
    title = Text.assemble(
        ("cynosure ", "bold"),
        f"{look.service.version} at {url}, {look.at:%H:%M:%S}",
        f": {_count(look.service.workers, 'worker')} at work, {_count(look.service.running, 'job')} running",
    )
    parts: list[RenderableType] = [title]
    if trouble is not None:
        parts.append(Text(f"Not up to date: {trouble}", style="bold red"))
    return Group(*parts, "", _models(look.service.models), "", _workers(look))


def _models(models: tuple[ModelStatus, ...]) -> Table:
    table = _table("model", "workers", *PLACES, "pictures/s", "waited p50", "p95", "ran p50", "p95")
    for model in models:
        waiting = [str(model.waiting_by_priority.get(place, 0)) for place in PLACES]
        recent = model.recent
        rate = f"{recent.pictures_per_second:.2f}" if recent else "-"
        times = [time_ for each in (recent.waited_s, recent.ran_s) for time_ in _times(each)] if recent else ["-"] * 4
        table.add_row(model.name, str(model.workers), *waiting, rate, *times)
    if not models:
        table.add_row("no worker serves one")
    return table


def _workers(look: Look) -> Table:
    table = _table("worker", "jobs", "pictures", "busy", "up")
    for name in ("state", "device", "models"):
        table.add_column(name)
    for worker in look.workers:
        table.add_row(
            worker.name,
            f"{worker.jobs}/{worker.max_jobs}",
            str(worker.pictures),
            f"{worker.busy:.0%}",
            _duration((look.at - worker.since).total_seconds()),
            worker.state,
            worker.device,
            ", ".join(worker.models),
        )
    if not look.workers:
        table.add_row("none")
    return table


def _table(name: str, *numbers: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(name)
    for number in numbers:
        table.add_column(number, justify="right")
    return table


def _times(quantiles: Quantiles) -> list[str]:
    return [f"{quantiles.p50:.1f} s", f"{quantiles.p95:.1f} s"]


def _duration(seconds: float) -> str:
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86_400
    return f"{days:.0f} d" if days >= 2 else f"{hours:.0f} h" if hours >= 2 else f"{max(0, minutes):.0f} min"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
