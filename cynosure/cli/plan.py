"""`cynosure plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from cynosure.cli import completion
from cynosure.cli.shared import ApiKey, AsJson, Url, assignments, refusing, show_json
from cynosure.client import DEFAULT_URL, Client
from cynosure.contract import GenerateRequest
from cynosure.refusals import parsed


def plan(
    fields: Annotated[
        list[str],
        typer.Argument(metavar="FIELD=VALUE", autocompletion=completion.assignments, help="fields of POST /generate"),
    ],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show what a request would cost, without drawing."""
    with refusing(as_json), Client(url, api_key=api_key) as client:
        estimate = client.plan(parsed(GenerateRequest, assignments(fields)))
    if as_json:
        show_json(estimate)
        return
    networks = ("denoiser", "guide_model", "classifier")
    counts = {name: count for name in networks if (count := getattr(estimate.rows, name))}
    rows = ", ".join(f"{count} through the {name.replace('_', ' ')}" for name, count in counts.items())
    reusing = f" ({estimate.rows.reusing} of them without deep blocks)" if estimate.rows.reusing else ""
    cost = "" if estimate.flop is None else f", {estimate.flop / 1e9:.1f} GFLOP"
    time = "" if estimate.seconds is None else f", about {estimate.seconds:.2f} s on an idle worker"
    typer.echo(f"{len(estimate.timesteps)} evaluations, {estimate.guided_evaluations} of them guided")
    typer.echo(f"rows: {rows}{reusing}{cost}{time}")
    for read in estimate.tokens:
        chunks = f" in {read.chunks} chunks" if read.chunks > 1 else ""
        cut = f"; cut off: '{read.cut}'" if read.cut else ""
        typer.echo(f"{read.field}: {read.tokens} tokens{chunks}; {read.encoder} reads {read.limit} at once{cut}")
    typer.echo(f"timesteps: {', '.join(f'{timestep:g}' for timestep in estimate.timesteps)}")
    typer.echo(f"sigmas: {', '.join(f'{sigma:.4g}' for sigma in estimate.sigmas)}")
    for warning in estimate.warnings:
        typer.echo(f"warning: {warning}", err=True)
