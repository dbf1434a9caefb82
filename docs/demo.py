"""`make demo`: one sheet of pictures, a row a guidance mode, drawn over HTTP by a server that it starts itself."""

from __future__ import annotations

import argparse
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageDraw

LABELS = ("sneaker", "bag", "trouser", "coat", "sandal")
ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("none", {"guidance_mode": "none"}),
    ("classifier, s = 3", {"guidance_mode": "classifier", "scale": 3}),
    ("classifier-free, w = 3", {"guidance_mode": "classifier_free", "scale": 3}),
    ("combined, w = 2, s = 2", {"guidance_mode": "combined", "scale": 2, "classifier_scale": 2}),
)
SEED = 7
CELL = 112
CAPTION = 18
READY_SECONDS = 180  # a worker loads torch and calibrates its engine before it is ready
PICTURE_SECONDS = 120


def draw(client: httpx.Client, label: str, fields: dict[str, Any]) -> Image.Image:
    """One picture; a refusal or failure is raised with the server's own words."""
    answer = client.post(
        "/generate",
        json={"class_label": label, "seed": SEED, **fields},
        headers={"Accept": "image/png", "Prefer": f"wait={PICTURE_SECONDS}"},
    )
    if answer.headers.get("content-type") != "image/png":
        raise SystemExit(f"{label}, {fields}: {answer.status_code} {answer.text}")
    return Image.open(io.BytesIO(answer.content)).convert("RGB")


def sheet(client: httpx.Client) -> Image.Image:
    """Rows are guidance modes, columns are labels; the seed is the same everywhere."""
    page = Image.new("RGB", (CELL * len(LABELS), (CELL + CAPTION) * len(ROWS)), "white")
    pen = ImageDraw.Draw(page)
    for row, (caption, fields) in enumerate(ROWS):
        top = row * (CELL + CAPTION)
        pen.text((4, top + 3), caption, fill="black")
        for column, label in enumerate(LABELS):
            picture = draw(client, label, fields).resize((CELL, CELL), Image.Resampling.NEAREST)
            page.paste(picture, (column * CELL, top + CAPTION))
    return page


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(client: httpx.Client, server: subprocess.Popen[bytes]) -> None:
    """Return once a worker has its models loaded."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"the server ended with exit status {server.returncode}")
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.5)
    raise SystemExit(f"the server was not ready within {READY_SECONDS} s")


def main() -> None:
    """Draw the sheet with the server at --url, or with one started for the purpose."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a running server; one is started and stopped otherwise")
    parser.add_argument("--out", type=Path, default=Path("out/demo.png"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.url:
        with httpx.Client(base_url=options.url, timeout=PICTURE_SECONDS + 10) as client:
            sheet(client).save(options.out)
    else:
        with tempfile.TemporaryDirectory() as data:
            port = free_port()
            cynosure = Path(sys.executable).with_name("cynosure")
            environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
            command = [cynosure, "up", "--port", str(port), "--data", data]
            server = subprocess.Popen(command, env=environment)
            try:
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PICTURE_SECONDS + 10) as client:
                    wait_until_ready(client, server)
                    sheet(client).save(options.out)
            finally:
                server.send_signal(signal.SIGINT)
                try:
                    server.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    server.kill()
                    server.wait()
    print(f"Wrote {options.out}")


if __name__ == "__main__":
    main()
