"""`cynosure generate`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cynosure.client import Client
from cynosure.contract import GenerateRequest, GuidanceMode, Job
from cynosure.errors import CynosureError

DEFAULT_URL = "http://127.0.0.1:8000"


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
        typer.echo(f"cynosure: {'.'.join(map(str, fault['loc']))}: {fault['msg']}", err=True)
        raise typer.Exit(1) from None


def progress_bar() -> Progress:
    """What every command that waits for a job shows."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn()
    )


def wait_showing(client: Client, job: Job, progress: Progress) -> Job:
    """Wait for the job, moving the bar."""
    bar = progress.add_task("queued", total=1.0)

    def show(now: Job) -> None:
        progress.update(bar, completed=now.progress, description=str(now.status))

    return client.wait(job.id, on_progress=show)


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
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for the PNGs")] = Path("out"),
    url: Annotated[str, typer.Option(envvar="CYNOSURE_URL", help="the server")] = DEFAULT_URL,
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
    }
    with refusing(), Client(url) as client, progress_bar() as progress:
        request = GenerateRequest(**{key: value for key, value in fields.items() if value is not None})
        job = wait_showing(client, client.submit(request), progress)
        out.mkdir(parents=True, exist_ok=True)
        for image in job.images:
            path = out / f"{job.request.seed}-{image.index:02d}.png"
            path.write_bytes(client.image(job.id, image.index))
            progress.console.print(str(path))
