"""The options of `cynosure worker`, apart from the program: help and completion need no torch."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Precision = Literal["auto", "float32", "tf32", "bfloat16", "float16"]


def worker(
    models: Annotated[
        str | None,
        typer.Option(
            help="packs to load: names, folders or owner/name@COMMIT, separated by commas", show_default="fashion,emoji"
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="torch device, such as cpu or cuda:0", show_default="CYNOSURE_WORKER_DEVICE")
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="number format of the networks", show_default="chosen for the device")
    ] = None,
) -> None:
    """Run one worker in the foreground. SIGTERM drains it; jobs unfinished after the grace period are handed back."""
