"""`python -m models.importing.single_files`: convert a single file of weights to a pack."""

from __future__ import annotations

import gc
import os
import shlex
import signal
import sys
from functools import wraps
from pathlib import Path

import typer

from models import command_line
from models.importing.errors import Unfit
from models.importing.single_files.conversion import import_file
from models.pack import InvalidPack

command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@command.command()
@wraps(command_line.import_file)
def _main(checkpoint: Path, out: Path, base: str | None) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the unfinished folder goes
    try:
        import_file(checkpoint, out, base, print)
    except (Unfit, InvalidPack) as error:
        sys.exit(f"cynosure import: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    print(f"wrote {out}; serve it with: cynosure up --models {shlex.quote(os.path.join('.', out))}")


if __name__ == "__main__":
    gc.freeze()  # libraries stay to the end, and searching them for garbage takes seconds
    command(prog_name="cynosure import")
