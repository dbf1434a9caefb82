"""Commands that run a server or a trainer. Their packages are imported only when they are called."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
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
    "train": ("models.training", "models.command_line:TRAIN", "Train a model pack, or a classifier for one."),
    "train lora": ("models.training.lora", "models.command_line:train_lora", "Train a LoRA on a folder of pictures."),
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
"""By command: the program (`python -m`), where its options are declared, and what it does. A mapping declares the
options of commands of its own."""

OWN_PACKAGES = {"models.training": ("accelerate",), "models.evaluation": ("accelerate", "matplotlib")}
"""Packages of the extra `train` that a program needs."""


class Commands(TyperGroup):
    """Commands of which services show only name and purpose until they are called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if (longer := " ".join(args[:2])) in SERVICES and " " in longer:
            return longer, _loaded(longer, tuple(rest[1:])), rest[1:]
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
        raise _lacking(name, str(error.name)) from None
    for package in OWN_PACKAGES.get(module, ()):
        if find_spec(package) is None:
            raise _lacking(name, package)
    if isinstance(declaration, typer.Typer):  # has commands of its own
        return get_command(declaration)
    command = typer.Typer(add_completion=False, no_args_is_help=isinstance(declaration, Mapping))
    if isinstance(declaration, Mapping):
        for own_name, options in declaration.items():
            command.command(own_name)(_becoming(options, module, arguments))
    else:
        command.command()(_becoming(declaration, module, arguments))
    return get_command(command)


def _lacking(name: str, package: str) -> typer.Exit:
    typer.echo(f"cynosure {name}: needs {package}, which is not installed. Try `make install`.", err=True)
    return typer.Exit(1)


def _becoming(declaration: Callable[..., None], module: str, arguments: tuple[str, ...]) -> Callable[..., None]:
    """A command with the declared options that becomes the program."""

    @wraps(declaration)
    def become(**_: Any) -> None:
        os.execv(sys.executable, program(module, *arguments))

    return become
