"""`cynosure generate`."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from cynosure.client import Client
from cynosure.contract import GenerateRequest, GuidanceMode, Job, Preview, Progress
from cynosure.errors import CynosureError

DEFAULT_URL = "http://127.0.0.1:8000"
Url = Annotated[str, typer.Option(envvar="CYNOSURE_URL", help="the server")]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="CYNOSURE_API_KEY", help="where the server asks for one; the variable is seen by fewer"),
]


@contextmanager
def refusing() -> Iterator[None]:
    """Turn a refusal into one line and exit code 1."""
    try:
        yield
    except CynosureError as error:
        typer.echo(f"cynosure: {error.field + ': ' if error.field else ''}{error.detail}", err=True)
        raise typer.Exit(1) from None
    except ValidationError as error:
        fault = error.errors()[0]
        said = "no such field" if fault["type"] == "extra_forbidden" else fault["msg"]
        typer.echo(f"cynosure: {'.'.join(map(str, fault['loc']))}: {said}", err=True)
        raise typer.Exit(1) from None


def progress_bar() -> Bar:
    """What every command that waits for a job shows."""
    return Bar(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn()
    )


def wait_showing(client: Client, job: Job, progress: Bar) -> Job:
    """Wait for the job, moving the bar."""
    bar = progress.add_task("queued", total=1.0)

    def show(event: Job | Progress | Preview) -> None:
        if isinstance(event, Job):
            place = f", {event.queue_position} before it" if event.queue_position else ""
            progress.update(bar, completed=event.progress, description=f"{event.status}{place}")
        elif isinstance(event, Progress):
            progress.update(bar, completed=event.step / event.steps, description="running")

    return client.wait(job.id, on_event=show)


def _encoded(path: Path | None) -> str | None:
    return None if path is None else base64.b64encode(path.read_bytes()).decode()


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """`FIELD=VALUE` each, the value as JSON where it is any, else as text."""
    found: dict[str, Any] = {}
    for text in texts:
        field, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"'{text}' is not FIELD=VALUE")
        try:
            found[field] = json.loads(value)
        except json.JSONDecodeError:
            found[field] = value
    return found


def generate(
    label: Annotated[str | None, typer.Option(help="class, by name or index")] = None,
    guidance: Annotated[GuidanceMode | None, typer.Option(help="where guidance comes from")] = None,
    scale: Annotated[float | None, typer.Option(help="the mode's scale")] = None,
    classifier_scale: Annotated[float | None, typer.Option(help="the classifier's, in combined")] = None,
    sampler: Annotated[str | None, typer.Option()] = None,
    steps: Annotated[int | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    count: Annotated[int, typer.Option("-n", "--count", help="pictures")] = 1,
    model: Annotated[str | None, typer.Option()] = None,
    prompt: Annotated[str | None, typer.Option(help="what to draw, for text models")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="what to steer away from")] = None,
    init_image: Annotated[Path | None, typer.Option(help="picture to start from", exists=True, dir_okay=False)] = None,
    strength: Annotated[float | None, typer.Option(help="how far to depart from it, 0 to 1")] = None,
    mask_image: Annotated[
        Path | None, typer.Option(help="white where it is redrawn", exists=True, dir_okay=False)
    ] = None,
    more: Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="any other field")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for the PNGs")] = Path("out"),
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Draw pictures and save them as PNG files."""
    fields: dict[str, Any] = {
        "class_label": int(label) if label is not None and label.isdecimal() else label,
        "guidance_mode": guidance,
        "guidance_scale": scale,
        "classifier_scale": classifier_scale,
        "sampler": sampler,
        "steps": steps,
        "seed": seed,
        "num_images": count,
        "model": model,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "init_image": _encoded(init_image),
        "strength": strength,
        "mask_image": _encoded(mask_image),
        **assignments(more or ()),
    }
    with refusing(), Client(url, api_key=api_key) as client, progress_bar() as progress:
        request = GenerateRequest(**{key: value for key, value in fields.items() if value is not None})
        job = wait_showing(client, client.submit(request), progress)
        out.mkdir(parents=True, exist_ok=True)
        for image in job.images:
            path = out / f"{job.request.seed}-{image.index:02d}.png"
            path.write_bytes(client.image(job.id, image.index))
            progress.console.print(str(path))
