"""`python -m models.evaluation PACK`: measure how well a pack follows its requests."""

from __future__ import annotations

import sys
from functools import wraps
from pathlib import Path

import typer

from models import command_line
from models.evaluation import classes, prompts
from models.pack import PROMPTED_PIXELS, InvalidPack, open_pack

command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@command.command()
@wraps(command_line.evaluate)
def _main(pack: str, count: int | None, only: str, sheets: Path | None) -> None:
    try:
        opened = open_pack(pack)
    except InvalidPack as error:
        sys.exit(f"cynosure evaluate: {error}")
    if opened.family != PROMPTED_PIXELS:
        if sheets:
            raise typer.BadParameter(
                f"'{opened.name}' draws classes; use `cynosure demo` for a sheet of those", param_hint="--sheets"
            )
        lines = classes.measured(opened, count=count or 500, only=only)
    elif sheets:
        return prompts.save_sheets(opened, sheets)
    else:
        lines = prompts.measured(opened, count=count or 126, only=only)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    command(prog_name="cynosure evaluate")
