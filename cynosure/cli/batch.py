"""`cynosure batch`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from cynosure.batches import BatchResult
from cynosure.cli.shared import FAILED, ApiKey, AsJson, Url, refusing, save, show_json
from cynosure.client import DEFAULT_URL, Client
from cynosure.errors import InvalidRequest

LOOK_S = 0.5
DOWNLOADS_AT_ONCE = 8
_MARK = ".cynosure-batch"
_ENDED = frozenset({"succeeded", "failed", "cancelled", "expired"})


def batch(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="requests as for POST /generate: one per line (NDJSON) or a JSON array",
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="folder for the pictures and results.ndjson", file_okay=False)
    ] = Path("out"),
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Draw every line of a file. If started again, resume where it stopped."""
    content = file.read_bytes()
    with refusing(as_json), Client(url, api_key=api_key) as client:
        key = f"cli-{hashlib.sha256(content).hexdigest()}"  # the same file is always the same batch
        submitted = client.submit_batch(content, idempotency_key=key)
        _claim(out, submitted.id)
        try:
            with _bar() as progress:
                bar = progress.add_task("lines", total=submitted.counts.total, rate=0.0)
                began = time.monotonic()
                fetched = 0

                def show(pictures: int) -> None:
                    nonlocal fetched
                    fetched += pictures
                    rate = fetched / max(0.001, time.monotonic() - began)
                    progress.update(bar, advance=1, rate=rate)

                results = _fetch(client, submitted.id, out, show)
        except KeyboardInterrupt:
            typer.echo(f"cynosure: batch {submitted.id} goes on; run the same command again to resume", err=True)
            raise
        lines = "".join(f"{one.model_dump_json()}\n" for one in results)
        save(out / "results.ndjson", lines.encode())
    failed = [one for one in results if one.status != "succeeded"]
    if as_json:
        show_json({"batch": submitted.id, "results": out / "results.ndjson", "failed": len(failed)})
    else:
        pictures = sum(len(one.images) for one in results)
        typer.echo(f"{pictures} picture{'s' * (pictures != 1)} in {out}")
        for one in failed[:10]:
            reason = one.error.message if one.error else one.status
            typer.echo(f"cynosure: line {one.line}: {reason}", err=True)
    if failed:
        raise typer.Exit(FAILED)


def _claim(out: Path, batch_id: str) -> None:
    """Mark the folder as this batch's: another batch has the same file names, and existing files are not fetched.

    Raises:
        InvalidRequest: the folder belongs to another batch.
    """
    mark = out / _MARK
    if not mark.exists():
        save(mark, batch_id.encode())
    elif (other := mark.read_text()) != batch_id:
        raise InvalidRequest(
            f"{out} holds the pictures of batch {other}. Choose another folder with --out: batch {batch_id} of this "
            "file is already accepted, and the command then fetches its pictures.",
            field="out",
        )


def _fetch(client: Client, batch_id: str, out: Path, show: Callable[[int], None]) -> list[BatchResult]:
    """Save pictures as they are made, until all lines have ended. Files that exist already are not fetched."""
    ended: dict[int, BatchResult] = {}
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        first = 1
        while True:
            counts = client.batch_status(batch_id).counts
            posted = counts.total - counts.waiting  # later lines can't have ended
            page = client.batch_results(batch_id, first_line=first, limit=posted + 1 - first)
            new = [one for one in page if one.status in _ENDED and one.line not in ended]
            for one in pool.map(lambda result: _saved(client, result, out), new):
                ended[one.line] = one
                show(len(one.images))
            while first in ended:
                first += 1
            if len(ended) == counts.total:
                return [ended[line] for line in sorted(ended)]
            if not new:
                time.sleep(LOOK_S)


def _saved(client: Client, result: BatchResult, out: Path) -> BatchResult:
    for image in result.images:
        extension = image.url.rpartition(".")[2]
        path = out / f"{result.line:05d}-{image.index:02d}.{extension}"
        if not path.exists():
            save(path, client.file(image.url))
    return result


def _bar() -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]:.1f} pictures/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
