"""Shared by the commands: options, exit codes, one-line errors, progress bars."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from cynosure.cli import completion
from cynosure.client import Client
from cynosure.client.address import server_url
from cynosure.contract import Job, LongPrompt, Preview, Progress, PromptSyntax
from cynosure.errors import CynosureError, JobCancelled, JobFailed, NoWorker, StoreUnavailable, Unreachable
from cynosure.metadata import encoded_picture

Item = TypeVar("Item")
REFUSED, NO_SERVER, FAILED, CANCELLED = 1, 3, 4, 5
EXIT_CODES = (
    "Exit codes: 0 done, 1 refused (the message says what to change), 2 wrong usage, 3 no server, worker or store "
    "(try later), 4 a job failed, 5 a job was cancelled, 130 interrupted."
)
_BY_KIND: Mapping[type[CynosureError], int] = {
    Unreachable: NO_SERVER,
    NoWorker: NO_SERVER,
    StoreUnavailable: NO_SERVER,
    JobFailed: FAILED,
    JobCancelled: CANCELLED,
}


def _server_url(text: str) -> str:
    try:
        return server_url(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


_MAX_CELL = 40  # characters; a longer list wraps within its cell
Url = Annotated[
    str, typer.Option(envvar="CYNOSURE_URL", callback=_server_url, help="address of the server; without a scheme, http")
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="CYNOSURE_API_KEY",
        help="API key, if required; prefer the variable: command lines are visible to other users",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(autocompletion=completion.models, help="name of the model", show_default="by the request"),
]
Sampler = Annotated[
    str | None, typer.Option(autocompletion=completion.samplers, help="sampler", show_default="the model's")
]
Steps = Annotated[int | None, typer.Option(help="steps of the sampler", show_default="the model's")]
_SIZE = re.compile(r"(?P<width>\d{1,7})[x×](?P<height>\d{1,7})", re.IGNORECASE)


def _size(text: str | None) -> str | None:
    if text is not None and not _SIZE.fullmatch(text):
        raise typer.BadParameter(f"'{text}' is not WIDTHxHEIGHT in pixels, such as 832x1216")
    return text


Size = Annotated[
    str | None,
    typer.Option(
        callback=_size, metavar="WIDTHxHEIGHT", help="size in pixels, such as 832x1216", show_default="the model's"
    ),
]
LongPrompts = Annotated[
    LongPrompt | None,
    typer.Option("--long-prompt", help="prompts of more tokens than CLIP reads at once", show_default="the model's"),
]
Syntax = Annotated[
    PromptSyntax | None,
    typer.Option("--prompt-syntax", help="plain, or weighted as in A1111: (word:1.3)", show_default="plain"),
]
ClipSkip = Annotated[
    int | None, typer.Option(help="layer of CLIP, counted from its last as in A1111", show_default="1")
]
Loras = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="NAME[:SCALE]", help="LoRA of GET /loras to draw with; may be given up to 4 times"),
]
Controls = Annotated[
    list[str] | None,
    typer.Option(
        "--control",
        metavar="NAME:PICTURE[,FIELD=VALUE…]",
        help="ControlNet of the model's card with the picture to steer by, and scale, start, end or preprocess, as in "
        "canny:photo.png,scale=0.8,preprocess=canny; may be given up to 3 times",
    ),
]
ImagePrompts = Annotated[
    list[str] | None,
    typer.Option(
        "--image-prompt",
        metavar="PICTURE[:SCALE]",
        help="picture to prompt with, for models with an IP-Adapter; may be given up to 4 times",
    ),
]
StepCaches = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar="EVERY[:UNTIL]",
        help="step caching: run deep blocks only at every such evaluation, up to a part of all, as in 3:0.8",
        show_default="off",
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", autocompletion=completion.assignments, help="set any other field"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON, and errors as JSON too")]


_CONTROL_FIELD = re.compile(r",(?P<text>(scale|start|end|preprocess)=[^,=]*)$")


@contextmanager
def refusing(as_json: bool = False) -> Iterator[None]:
    """Turn an error into one line (or one JSON object) and an exit code."""
    try:
        yield
    except CynosureError as error:
        code = next((code for kind, code in _BY_KIND.items() if isinstance(error, kind)), REFUSED)
        _end(code, error.code, error.field, error.detail, as_json)
    except BrokenPipeError:
        raise
    except OSError as error:
        _end(REFUSED, "file_error", None, f"{error.filename}: {error.strerror}", as_json)
    except KeyboardInterrupt:
        _end(130, "interrupted", None, "interrupted", as_json)


def _end(exit_code: int, code: str, field: str | None, detail: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"error": {"code": code, "field": field, "detail": detail}}), err=True)
    else:
        names_it = field is None or detail.startswith(field)
        typer.echo(f"cynosure: {'' if names_it else f'{field}: '}{detail}", err=True)
    raise typer.Exit(exit_code) from None


def sides(size: str | None) -> dict[str, int]:
    """`width` and `height` of a size as text; nothing if there is none."""
    found = _SIZE.fullmatch(size or "")
    return {side: int(pixels) for side, pixels in found.groupdict().items()} if found else {}


def show_json(value: Any) -> None:
    """Print a value of the contract, or a structure of such values, as JSON."""

    def plain(part: Any) -> Any:
        return part.model_dump(mode="json") if isinstance(part, BaseModel) else str(part)

    typer.echo(json.dumps(value, default=plain))


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on a terminal; elsewhere the bare rows, with tabs, as `cut` and `while read` take them."""
    if not sys.stdout.isatty():
        for row in rows:
            typer.echo("\t".join(row))
        return
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    for column in table.columns:
        width = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
        column.min_width = min(width, _MAX_CELL)
    console = Console()
    needed = sum(column.min_width or 0 for column in table.columns) + 2 * len(columns)
    console.print(table, width=max(console.width, needed), crop=False)  # ids are copied: wrap lines, never cells


def show_list(
    fetch: Callable[[Client], Sequence[Item]],
    columns: Sequence[str],
    row: Callable[[Item], Sequence[str]],
    *,
    url: str,
    api_key: str | None,
    as_json: bool,
) -> None:
    """Fetch what the server lists and print it, as JSON or as a table of one row each."""
    with refusing(as_json), Client(url, api_key=api_key) as client:
        found = fetch(client)
    if as_json:
        show_json(found)
    else:
        show_table(columns, map(row, found))


def progress_bar() -> Bar:
    """The bar that a command shows on standard error while it waits for a job."""
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def wait_showing(client: Client, job: Job) -> Job:
    """Wait for the job behind a progress bar; Ctrl-C cancels the job."""
    with progress_bar() as progress:
        bar = progress.add_task("queued", total=1.0)

        def show(event: Job | Progress | Preview) -> None:
            if isinstance(event, Job):
                place = f", {event.queue_position} ahead of it" if event.queue_position else ""
                progress.update(bar, completed=event.progress, description=f"{event.status}{place}")
            elif isinstance(event, Progress):
                progress.update(bar, completed=event.evaluations_done / event.evaluations, description="running")

        try:
            return client.wait(job.id, on_event=show)
        except KeyboardInterrupt:
            client.cancel(job.id)
            raise


def save(path: Path, content: bytes) -> Path:
    """Write a file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
    return path


def save_beside(path: Path, content: bytes) -> Path:
    """Write a file; if one of that name holds something else, `-1`, `-2` … is added to the name."""
    stem, number = path.stem, 0
    while path.exists() and path.read_bytes() != content:
        number += 1
        path = path.with_name(f"{stem}-{number}{path.suffix}")
    return save(path, content)


def encoded(path: Path | None) -> str | None:
    """A file in base64, as requests take pictures."""
    return None if path is None else encoded_picture(path.read_bytes())


def loras_of(texts: Iterable[str] | None) -> list[dict[str, Any]] | None:
    """LoRAs as requests name them, from texts of the form `NAME` or `NAME:SCALE`."""
    found: list[dict[str, Any]] = []
    for text in texts or ():
        name, colon, scale = text.rpartition(":")
        try:
            found.append({"name": name, "scale": float(scale)} if colon else {"name": text})
        except ValueError:
            reason = f"'{text}' is not NAME or NAME:SCALE, such as ink:0.8"
            raise typer.BadParameter(reason, param_hint="--lora") from None
    return found or None


def controls_of(texts: Iterable[str] | None) -> list[dict[str, Any]] | None:
    """Controls as requests name them, from texts such as `canny:photo.png,scale=0.8`."""
    found: list[dict[str, Any]] = []
    for text in texts or ():
        rest, fields = text, dict[str, Any]()
        while option := _CONTROL_FIELD.search(rest):  # a picture's name may hold commas, too
            rest, fields = rest[: option.start()], assignments([option["text"]]) | fields
        name, colon, picture = rest.partition(":")
        if not (name and colon and Path(picture).is_file()):
            reason = f"'{text}' is not NAME:PICTURE, such as canny:photo.png, with a picture that is there"
            raise typer.BadParameter(reason, param_hint="--control")
        found.append({"model": name, "image": encoded(Path(picture)), **fields})
    return found or None


def image_prompts_of(texts: Iterable[str] | None) -> list[dict[str, Any]] | None:
    """Image prompts as requests have them, from texts of the form `PICTURE` or `PICTURE:SCALE`."""
    found: list[dict[str, Any]] = []
    for text in texts or ():
        picture, colon, scale = (text, "", "") if Path(text).is_file() else text.rpartition(":")
        try:
            found.append({"image": encoded(Path(picture)), **({"scale": float(scale)} if colon else {})})
        except (ValueError, OSError):
            reason = f"'{text}' is not PICTURE or PICTURE:SCALE, such as photo.png:0.6, with a picture that is there"
            raise typer.BadParameter(reason, param_hint="--image-prompt") from None
    return found or None


def cache_of(text: str | None) -> dict[str, Any] | None:
    """A step cache as requests have it, from a text of the form `EVERY` or `EVERY:UNTIL`."""
    if text is None:
        return None
    every, colon, until = text.partition(":")
    try:
        return {"every": int(every), **({"until": float(until)} if colon else {})}
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not EVERY or EVERY:UNTIL, such as 3:0.8", param_hint="--cache") from None


def merged(options: Mapping[str, Any], texts: Iterable[str] | None) -> dict[str, Any]:
    """The fields from options that were given, and from `--set`; none may come from both."""
    given = {field: value for field, value in options.items() if value is not None}
    more = assignments(texts or ())
    if twice := given.keys() & more.keys():
        raise typer.BadParameter(f"'{min(twice)}' is given twice: leave it out of --set", param_hint="--set")
    return given | more


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Parse texts of the form `FIELD=VALUE`. A value that is valid JSON is read as JSON, any other as text."""
    fields: dict[str, Any] = {}
    for text in texts:
        field, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"'{text}' is not FIELD=VALUE")
        if field in fields:
            raise typer.BadParameter(f"'{field}' is given twice")
        try:
            fields[field] = json.loads(value)
        except json.JSONDecodeError:
            fields[field] = value
    return fields
