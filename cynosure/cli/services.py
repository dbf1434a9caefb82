"""Commands that run a server or a trainer: each replaces this process by that program, so signals reach it directly."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import typer

from cynosure.programs import program

SERVICES = {
    "up": ("app.commands.up", "Run the store, workers and gateway on this machine."),
    "serve": ("app", "Run the gateway only."),
    "keys": ("app.commands.keys", "Create, list, rotate and revoke API keys."),
    "worker": ("workers", "Run one worker."),
    "train": ("models.training", "Train a pixel-space model pack."),
    "import-adm": ("models.importing", "Convert published ADM checkpoints to a model pack."),
    "selftest": ("models.parity", "Compare this machine's results with those of the reference systems."),
    "calibrate": ("models.calibration", "Benchmark a model pack on this device."),
    "evaluate": ("models.evaluation", "Measure the quality of a model pack's pictures."),
}


def service(module: str) -> Callable[[typer.Context], None]:
    """A command that passes all its arguments to `python -m module`."""

    def run(context: typer.Context) -> None:
        os.execv(sys.executable, program(module, *context.args))

    return run
