"""`cynosure`: the commands."""

from __future__ import annotations

import typer

from cynosure.cli.demo import demo
from cynosure.cli.generate import generate
from cynosure.cli.models import models
from cynosure.cli.plan import plan
from cynosure.cli.services import SERVICES, service
from cynosure.cli.sweep import sweep

app = typer.Typer(help="Guided diffusion as a service.", no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(generate)
app.command()(sweep)
app.command()(plan)
app.command()(models)
app.command()(demo)
for name, (module, text) in SERVICES.items():
    app.command(
        name,
        help=text,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(service(module))
