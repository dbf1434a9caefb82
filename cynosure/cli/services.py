"""Commands that run a server or a trainer: each becomes the program it names, so that signals reach it directly."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import typer

SERVICES = {
    "up": ("app.commands.up", "Run store, workers and gateway on this machine."),
    "serve": ("app", "Run the gateway alone."),
    "keys": ("app.commands.keys", "Make, list, rotate and revoke API keys."),
    "worker": ("workers", "Run one worker."),
    "train": ("models.training", "Train a pack of pixels."),
    "import-adm": ("models.importing", "Turn published ADM checkpoints into a pack."),
    "selftest": ("models.parity", "Compare this machine's results with the reference systems'."),
    "calibrate": ("models.calibration", "Measure how a pack runs on this device."),
    "evaluate": ("models.evaluation", "Measure a pack's pictures."),
}


def service(module: str) -> Callable[[typer.Context], None]:
    """A command that passes all its arguments to `python -m module`."""

    def run(context: typer.Context) -> None:
        os.execv(sys.executable, [sys.executable, "-m", module, *context.args])

    return run
