"""`cynosure demo`: start a server, draw a contact sheet, leave nothing else behind."""

from __future__ import annotations

import io
import itertools
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from cynosure.cli.shared import refusing
from cynosure.client import Client
from cynosure.contract import GenerateRequest, Job, ModelCard
from cynosure.errors import CynosureError, NoWorker, Unreachable
from cynosure.programs import program

CELL, MARGIN, HEADER = 84, 230, 24  # pixels
START_TIMEOUT_S = 300.0  # long enough for a slow disk; a server that exits is noticed at once
LABEL_ROWS: Mapping[str, Mapping[str, Any]] = {
    "no guidance": {"guidance_mode": "none"},
    "classifier, s = 2 (unconditional base)": {
        "guidance_mode": "classifier",
        "scale": 2,
        "classifier_base": "unconditional",
    },
    "classifier, s = 5 (unconditional base)": {
        "guidance_mode": "classifier",
        "scale": 5,
        "classifier_base": "unconditional",
    },
    "classifier, s = 10 (unconditional base)": {
        "guidance_mode": "classifier",
        "scale": 10,
        "classifier_base": "unconditional",
    },
    "classifier-free, w = 1.5": {"guidance_mode": "classifier_free", "scale": 1.5},
    "classifier-free, w = 3": {"guidance_mode": "classifier_free", "scale": 3},
    "classifier-free, w = 6": {"guidance_mode": "classifier_free", "scale": 6},
}

PROMPTS = (
    "a happy cat",
    "car",
    "red apple",
    "pizza",
    "sunflower",
    "rocket",
    "sailboat",
    "house",
    "tree",
    "penguin",
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Requests to one model: the fields of each row combined with those of each column."""

    model: str
    rows: Mapping[str, Mapping[str, Any]]
    columns: Mapping[str, Mapping[str, Any]]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(client: Client, server: subprocess.Popen[bytes], log: Path) -> tuple[ModelCard, ...]:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        if server.poll() is not None:
            raise CynosureError(f"the server exited with code {server.returncode}:\n{log.read_text().strip()}")
        try:
            if cards := client.models():
                return cards
        except Unreachable:
            pass
        time.sleep(0.5)
    raise NoWorker(f"the server was not ready after {START_TIMEOUT_S:.0f} s")


def _tables(cards: tuple[ModelCard, ...]) -> Iterator[Table]:
    for card in cards:
        if card.takes_prompt:
            conditioned = {f"prompt, conditioned on {style}": {"class_label": style} for style in card.labels}
            guided = {
                f"prompt, classifier-guided towards {style}": {"class_label": style, "guidance_mode": "combined"}
                for style in card.labels
                if "combined" in card.guidance_modes
            }
            yield Table(
                model=card.name, rows=conditioned | guided, columns={prompt: {"prompt": prompt} for prompt in PROMPTS}
            )
        else:
            rows = {name: row for name, row in LABEL_ROWS.items() if row["guidance_mode"] in card.guidance_modes}
            yield Table(model=card.name, rows=rows, columns={label: {"class_label": label} for label in card.labels})


def _submitted(client: Client, table: Table) -> list[list[Job]]:
    return [
        [
            client.submit(GenerateRequest.model_validate({"model": table.model, "seed": 7, **row, **column}))
            for column in table.columns.values()
        ]
        for row in table.rows.values()
    ]


def _draw_sheet(client: Client, tables: list[Table], on_picture: Callable[[], None]) -> Image.Image:
    jobs = [_submitted(client, table) for table in tables]
    width = MARGIN + CELL * max(len(table.columns) for table in tables)
    sheet = Image.new("RGB", (width, sum(HEADER + CELL * len(table.rows) for table in tables)), "white")
    pen = ImageDraw.Draw(sheet)
    top = 0
    for table, rows in zip(tables, jobs, strict=True):
        for number, title in enumerate(table.columns):
            pen.text((MARGIN + CELL * number + 6, top + 6), title, fill="black")
        top += HEADER
        for title, row in zip(table.rows, rows, strict=True):
            pen.text((8, top + CELL // 2 - 6), title, fill="black")
            for left, job in zip(itertools.count(MARGIN, CELL), row, strict=False):
                picture = Image.open(io.BytesIO(client.image(client.wait(job.id).id)))
                cell = picture.convert("RGB").resize((CELL - 2, CELL - 2), Image.Resampling.LANCZOS)
                sheet.paste(cell, (left, top))
                on_picture()
            top += CELL
    return sheet


def _bar() -> Bar:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Bar(*columns, console=Console(stderr=True))


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="file for the contact sheet", dir_okay=False)] = Path(
        "out/demo.png"
    ),
) -> None:
    """Start a server, draw labels and prompts in every guidance mode, save a contact sheet, stop the server."""
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="cynosure-demo-") as data, refusing():
        others = ("REDIS_URL", "CYNOSURE_METRICS_PORT")  # of a server that may be running
        environment = {key: value for key, value in os.environ.items() if key not in others}
        environment["CYNOSURE_GATEWAY_AUTH"] = "auto"  # a loopback address and a store without keys: none is needed
        command = program("app.commands.up", "--port", str(port), "--data", data, "--with-parent")
        path = Path(data) / "server.log"  # its hints are for a server that stays
        with path.open("wb") as log:
            server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            with Client(f"http://127.0.0.1:{port}") as client, _bar() as bar:
                task = bar.add_task("starting a server", total=None)
                tables = list(_tables(_wait_until_ready(client, server, path)))
                pictures = sum(len(table.rows) * len(table.columns) for table in tables)
                bar.update(task, description="drawing", total=pictures)
                sheet = _draw_sheet(client, tables, lambda: bar.advance(task))
        finally:
            server.terminate()
            server.wait()
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out, format="PNG")
        typer.echo(f"wrote {out}")
