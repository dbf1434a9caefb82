"""`cynosure workers`, and `drain` of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from cynosure.cli.shared import ApiKey, AsJson, Url, refusing, show_json, show_list
from cynosure.client import DEFAULT_URL, Client
from cynosure.contract import WorkerStatus

workers = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


def load_of(worker: WorkerStatus) -> str:
    """How much it has to do, as people read it."""
    return f"{worker.jobs} jobs, {worker.pictures} pictures, {worker.busy:.0%} busy"


@workers.callback(invoke_without_command=True)
def show(ctx: typer.Context, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List the live workers; drain one. Takes a key with the scope admin."""
    if ctx.invoked_subcommand is not None:
        return
    columns = ("worker", "state", "device", "models", "load", "version", "since")
    show_list(Client.workers, columns, _row_of, url=url, api_key=api_key, as_json=as_json)


def _row_of(worker: WorkerStatus) -> Sequence[str]:
    return (
        worker.name,
        worker.state,
        worker.device,
        ", ".join(worker.models),
        load_of(worker),
        worker.version,
        worker.since.isoformat(timespec="seconds"),
    )


@workers.command()
def drain(
    name: Annotated[str, typer.Argument(help="name of the worker, as `cynosure workers` prints it")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Have a worker finish its jobs or hand them back, and end; wait for that, but at most half a minute."""
    with refusing(as_json), Client(url, api_key=api_key) as client:
        has_ended = client.drain_worker(name)
    if as_json:
        show_json({"name": name, "ended": has_ended})
    else:
        typer.echo(f"{name} {'has ended' if has_ended else 'is draining'}")
