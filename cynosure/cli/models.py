"""`cynosure models`, and `add`, `remove` and `status` of it; `cynosure loras`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from cynosure.cli.shared import ApiKey, AsJson, Url, refusing, show_json, show_list, show_table
from cynosure.client import DEFAULT_URL, Client
from cynosure.contract import LeavingJobs, LoraInfo, ModelCard, ModelLoad, Sizes

models = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@models.callback(invoke_without_command=True)
def show(
    ctx: typer.Context,
    with_labels: Annotated[bool, typer.Option("--labels", help="list the labels instead of counting them")] = False,
    with_samplers: Annotated[
        bool, typer.Option("--samplers", help="list the samplers instead of counting them")
    ] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List the server's models; load and unload them."""
    if ctx.invoked_subcommand is not None:
        return

    def row(card: ModelCard) -> Sequence[str]:
        return (
            card.name,
            _size(card.sizes),
            _bytes(card.memory.total_bytes),
            "yes" if card.served else "no: jobs wait",
            "yes" if card.takes_prompt else "no",
            f"{card.defaults.sampler}, {card.defaults.steps} steps",
            f"{len(card.guidance_modes)} modes",
            _shown(card.labels, with_labels),
            _shown(card.samplers, with_samplers),
        )

    columns = ("model", "size", "memory", "served", "prompts", "default", "guidance", "labels", "samplers")
    show_list(Client.models, columns, row, url=url, api_key=api_key, as_json=as_json)


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _size(sizes: Sizes) -> str:
    """The default, and what else there is."""
    default = "×".join(map(str, sizes.default))
    return default if sizes.is_one else f"{default}; sides {sizes.min_side} to {sizes.max_side}"


def _shown(names: Sequence[str], are_listed: bool) -> str:
    return ", ".join(names) if are_listed else str(len(names))


def loras(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List the LoRAs that requests may name, and why those with a fault can't be used."""
    columns = ("lora", "rank", "family", "models", "trigger words", "digest", "fault")
    show_list(Client.loras, columns, _row_of, url=url, api_key=api_key, as_json=as_json)


def _row_of(lora: LoraInfo) -> Sequence[str]:
    return (
        lora.name,
        str(lora.rank),
        lora.family or "",
        ", ".join(lora.models),
        ", ".join(lora.trigger_words),
        lora.digest[:12],
        lora.fault or "",
    )


@models.command()
def add(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[NAME=]MODEL",
            help="a bundled model's name, a folder in the workers' CYNOSURE_MODELS_ROOT, or owner/name@COMMIT",
        ),
    ],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Have every worker load a model while it serves, and wait for that."""
    with refusing(as_json), Client(url, api_key=api_key) as client:
        load = client.add_model(model)
    _show_loads([load], as_json)


@models.command()
def remove(
    name: Annotated[str, typer.Argument(help="name of the model")],
    jobs: Annotated[LeavingJobs, typer.Option(help="what becomes of its accepted jobs")] = LeavingJobs.FINISH,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Have every worker unload a model. It takes no new jobs; accepted ones are drawn first, or wait, or fail."""
    with refusing(as_json), Client(url, api_key=api_key) as client:
        load = client.remove_model(name, jobs=jobs)
    if as_json:
        show_json(load)
    else:
        typer.echo(f"{load.name} {'is being unloaded' if load.workers else 'is unloaded'}")


@models.command()
def status(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show how far each worker is with each model, and why one could not be loaded."""
    with refusing(as_json), Client(url, api_key=api_key) as client:
        loads = client.model_loads()
    _show_loads(loads, as_json)


def _show_loads(loads: Sequence[ModelLoad], as_json: bool) -> None:
    if as_json:
        show_json(loads)
        return
    show_table(
        ("model", "worker", "state", "loaded from", "reason"),
        (
            (load.name, at.worker, at.state, "--models" if at.own else load.model or "", at.reason or "")
            for load in loads
            for at in load.workers
        ),
    )
