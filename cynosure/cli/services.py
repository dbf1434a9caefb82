"""Commands that run a server or a trainer. Their packages are imported only when they are called."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from cynosure.programs import program

SERVICES = {
    "up": ("app.commands.up", "app.commands.up:main", "Run the store, workers and gateway on this machine."),
    "serve": ("app", "app.__main__:main", "Run the gateway only."),
    "keys": ("app.commands.keys", "app.commands.keys:command", "Create, list, rotate and revoke API keys."),
    "worker": ("workers", "workers.__main__:main", "Run one worker."),
    "train": ("models.training", "models.command_line:train", "Train a bundled model pack."),
    "import": (
        "models.importing.single_files",
        "models.command_line:import_file",
        "Convert a single .safetensors file (Stable Diffusion, Flux) to a model pack.",
    ),
    "import-adm": (
        "models.importing",
        "models.command_line:import_adm",
        "Convert published ADM checkpoints to a model pack.",
    ),
    "selftest": (
        "models.parity",
        "models.command_line:selftest",
        "Compare this machine's results with those of the reference systems.",
    ),
    "calibrate": ("models.calibration", "models.command_line:calibrate", "Benchmark a model pack on this device."),
    "evaluate": (
        "models.evaluation",
        "models.command_line:evaluate",
        "Measure the quality of a model pack's pictures.",
    ),
}
"""By command: the program (`python -m`), where its options are declared, and what it does."""


class Commands(TyperGroup):
    """Commands of which services show only name and purpose until they are called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, _loaded(name, tuple(rest)) if name in SERVICES else command, rest


def announced(text: str) -> Callable[[], None]:
    """Stands for a service in the list of commands."""

    def stand_in() -> None: ...

    stand_in.__doc__ = text
    return stand_in


def _loaded(name: str, arguments: tuple[str, ...]) -> Any:
    """The command with its options: it checks the arguments and then becomes the program, so signals reach it."""
    module, declared, _ = SERVICES[name]
    place, _, attribute = declared.partition(":")
    try:
        declaration = getattr(import_module(place), attribute)
    except ModuleNotFoundError as error:
        typer.echo(f"cynosure {name}: needs {error.name}, which is not installed. Try `make install`.", err=True)
        raise typer.Exit(1) from None
    if isinstance(declaration, typer.Typer):  # has commands of its own
        return get_command(declaration)

    @wraps(declaration)
    def become(**_: Any) -> None:
        os.execv(sys.executable, program(module, *arguments))

    command = typer.Typer(add_completion=False)
    command.command()(become)
    return get_command(command)
