"""`cynosure`: the commands."""

from __future__ import annotations

from typing import Annotated

import typer

from cynosure import __version__
from cynosure.cli.again import again
from cynosure.cli.batch import batch
from cynosure.cli.demo import demo
from cynosure.cli.fleet.top import top
from cynosure.cli.fleet.workers import workers
from cynosure.cli.generate import generate
from cynosure.cli.jobs import cancel, jobs
from cynosure.cli.models import loras, models
from cynosure.cli.plan import plan
from cynosure.cli.services import SERVICES, Commands, announced
from cynosure.cli.shared import EXIT_CODES
from cynosure.cli.sweep import sweep

app = typer.Typer(
    cls=Commands,
    help="Guided diffusion as a service.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"cynosure {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="print the version")
    ] = False,
) -> None:
    """Guided diffusion as a service."""


app.command()(generate)
app.command()(sweep)
app.command()(batch)
app.command()(again)
app.command()(plan)
app.command()(jobs)
app.command()(cancel)
app.add_typer(models, name="models")
app.command()(loras)
app.add_typer(workers, name="workers")
app.command()(top)
app.command()(demo)
for name, (_, _, text) in SERVICES.items():
    app.command(name)(announced(text))
