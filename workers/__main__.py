"""`python -m workers`: run a worker, or refuse in one line what can't be served."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cynosure.programs import importing
from jobs import traces
from jobs.pictures.opening import check_pictures
from jobs.settings import MetricsSettings, StoreSettings
from jobs.starting import InvalidSettings, log_to, read_settings, refusing, warn_of_unknown_variables
from models.pack import InvalidPack, open_packs
from models.reviewing.folder import InvalidReview, open_review
from workers.settings import ReviewSettings, WorkerSettings

command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Precision = Literal["auto", "float32", "tf32", "bfloat16", "float16", "int8"]
Quantize = Literal["int8"]


Controls = Annotated[
    Path | None, typer.Option(help="folder of ControlNets that requests may name", show_default="CYNOSURE_CONTROLS")
]


@command.command()
def main(
    models: Annotated[
        str | None,
        typer.Option(
            help="packs to load, separated by commas: names, folders, owner/name@COMMIT, or NAME= before one",
            show_default="fashion,emoji",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="torch device, such as cpu or cuda:0", show_default="CYNOSURE_WORKER_DEVICE")
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="number format of the networks", show_default="chosen for the device")
    ] = None,
    quantize: Annotated[
        Quantize | None,
        typer.Option(
            help="int8 weights in the linear layers of denoisers and text encoders",
            show_default="CYNOSURE_WORKER_QUANTIZE",
        ),
    ] = None,
    offload: Annotated[
        bool | None,
        typer.Option(
            "--offload",
            help="on CUDA, keep weights in the host's memory until their layer runs",
            show_default="CYNOSURE_WORKER_OFFLOAD",
        ),
    ] = None,
    supervised: Annotated[
        bool, typer.Option("--supervised", help="end with exit code 75, to be restarted, unless told to drain")
    ] = False,
    loras: Annotated[
        Path | None, typer.Option(help="folder of LoRAs that requests may name", show_default="CYNOSURE_LORAS")
    ] = None,
    controls: Controls = None,
    check: Annotated[bool, typer.Option("--check", help="only check the settings and find the packs")] = False,
) -> None:
    """Run one worker in the foreground. SIGTERM drains it; jobs unfinished after the grace period are handed back."""
    chosen = {"models": models, "device": device, "precision": precision, "quantize": quantize}
    others = {"offload": offload, "loras": loras, "controls": controls}
    given = {name: value for name, value in (chosen | others).items() if value is not None}
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until it serves, Ctrl-C ends it without a traceback
    with refusing("cynosure worker", InvalidSettings, InvalidPack, InvalidReview):
        log_to(sys.stderr)
        settings, store_settings = read_settings(WorkerSettings, **given), read_settings(StoreSettings)
        metrics, review = read_settings(MetricsSettings), read_settings(ReviewSettings)
        packs = open_packs(settings.packs)
        reviewing = open_review(review.model, review.thresholds) if review.model is not None else None
        check_pictures(store_settings)
        if not check:
            traces.start("cynosure-worker")
    warn_of_unknown_variables(WorkerSettings, ReviewSettings, MetricsSettings, StoreSettings)
    if check:
        return
    with importing():
        from workers.serving import serve  # imports torch, which takes seconds: whatever is wrong was refused before

    serve(settings, store_settings, metrics, review, packs, reviewing, is_supervised=supervised)


if __name__ == "__main__":
    command(prog_name="cynosure worker")
