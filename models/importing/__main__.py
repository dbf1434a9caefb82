"""`python -m models.importing`: convert published ADM checkpoints to a pack."""

from __future__ import annotations

import gc
import os
import shlex
import sys
from functools import wraps
from pathlib import Path

import typer

from models import command_line
from models.importing.adm import PRESETS, import_adm
from models.importing.errors import Unfit

command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@command.command()
@wraps(command_line.import_adm)
def _main(
    diffusion: Path, out: Path, preset: command_line.PresetName, classifier: Path | None, labels: Path | None
) -> None:
    names = labels.read_text().splitlines() if labels else None
    try:
        import_adm(diffusion, out, PRESETS[preset], classifier=classifier, labels=names)
    except Unfit as error:
        sys.exit(f"cynosure import-adm: {error}")
    print(f"wrote {out}; serve it with: cynosure up --models {shlex.quote(os.path.join('.', out))}")


if __name__ == "__main__":
    gc.freeze()  # libraries stay to the end, and searching them for garbage takes seconds
    command(prog_name="cynosure import-adm")
