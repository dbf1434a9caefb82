"""`cynosure plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from cynosure.cli.shared import ApiKey, AsJson, Url, assignments, refusing, show_json
from cynosure.client import DEFAULT_URL, Client
from cynosure.contract import GenerateRequest


def plan(
    fields: Annotated[list[str], typer.Argument(metavar="FIELD=VALUE...", help="fields of POST /generate")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Say what a request would take, without drawing."""
    with refusing(as_json), Client(url, api_key=api_key) as client:
        found = client.plan(GenerateRequest(**assignments(fields)))
    if as_json:
        show_json(found)
        return
    rows = ", ".join(f"{count} through the {name.replace('_', ' ')}" for name, count in found.rows if count)
    cost = "" if found.flop is None else f", {found.flop / 1e9:.1f} GFLOP"
    time = "" if found.seconds is None else f", about {found.seconds:.2f} s on an idle worker"
    typer.echo(f"{len(found.timesteps)} evaluations, {found.guided_evaluations} of them guided")
    typer.echo(f"rows: {rows}{cost}{time}")
    typer.echo(f"timesteps: {', '.join(f'{timestep:g}' for timestep in found.timesteps)}")
    typer.echo(f"sigmas: {', '.join(f'{sigma:.4g}' for sigma in found.sigmas)}")
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)
