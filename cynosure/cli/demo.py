"""`cynosure demo`: a server from nothing, a contact sheet, and nothing left behind."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image, ImageDraw

from cynosure.cli.shared import refusing
from cynosure.client import Client
from cynosure.contract import GenerateRequest, ModelCard
from cynosure.errors import CynosureError, NoWorker, Unreachable

CELL, MARGIN, HEADER = 84, 230, 24
START_TIMEOUT_S = 180.0
ROWS: dict[str, dict[str, Any]] = {
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(client: Client, server: subprocess.Popen[bytes]) -> ModelCard:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        if server.poll() is not None:
            raise CynosureError(f"the server ended with code {server.returncode}")
        try:
            if cards := client.models():
                return cards[0]
        except Unreachable:
            pass
        time.sleep(0.5)
    raise NoWorker(f"the server was not ready after {START_TIMEOUT_S:.0f} s")


def _draw_sheet(client: Client, card: ModelCard) -> Image.Image:
    rows = {name: row for name, row in ROWS.items() if row["guidance_mode"] in card.guidance_modes}
    jobs = {
        (row, column): client.submit(GenerateRequest.model_validate({"class_label": column, "seed": 7, **rows[name]}))
        for row, name in enumerate(rows)
        for column in range(len(card.labels))
    }
    sheet = Image.new("RGB", (MARGIN + CELL * len(card.labels), HEADER + CELL * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, label in enumerate(card.labels):
        pen.text((MARGIN + CELL * column + 6, 6), label, fill="black")
    for row, name in enumerate(rows):
        pen.text((8, HEADER + CELL * row + CELL // 2 - 6), name, fill="black")
    for (row, column), job in jobs.items():
        done = client.wait(job.id)
        picture = Image.open(io.BytesIO(client.image(done.id)))
        cell = picture.convert("RGB").resize((CELL - 2, CELL - 2), Image.Resampling.LANCZOS)
        sheet.paste(cell, (MARGIN + CELL * column, HEADER + CELL * row))
    return sheet


def demo(out: Annotated[Path, typer.Option("-o", "--out", help="where the sheet goes")] = Path("out/demo.png")) -> None:
    """Start a server, draw every class under every guidance, save the contact sheet, stop the server."""
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="cynosure-demo-") as data, refusing():
        environment = {key: value for key, value in os.environ.items() if key != "REDIS_URL"}
        environment["CYNOSURE_GATEWAY_AUTH"] = "auto"  # a loopback address and a store without keys: open
        command = [sys.executable, "-m", "app.up", "--port", str(port), "--data", data, "--with-parent"]
        server = subprocess.Popen(command, env=environment)
        try:
            with Client(f"http://127.0.0.1:{port}") as client:
                sheet = _draw_sheet(client, _wait_until_ready(client, server))
        finally:
            server.terminate()
            server.wait()
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out)
        typer.echo(f"wrote {out}")
