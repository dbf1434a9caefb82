"""`cynosure batch`."""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated
from zipfile import ZipFile

import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from cynosure.batches import BatchResult
from cynosure.cli.shared import FAILED, ApiKey, AsJson, Url, refusing, save, show_json
from cynosure.client import DEFAULT_URL, Client
from cynosure.errors import InvalidRequest
from cynosure.metadata import encoded_picture, read

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
    npz: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="also write all pictures as guided-diffusion's evaluator.py reads them: arr_0, and labels as arr_1",
            dir_okay=False,
        ),
    ] = None,
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
        if npz is not None:
            _save_samples([path for one in results for path in _paths(one, out)], npz)
    _report(results, submitted.id, out, as_json=as_json)


def _report(results: Sequence[BatchResult], batch_id: str, out: Path, *, as_json: bool) -> None:
    """Print what became of the lines; exit if some have failed."""
    failed = [one for one in results if one.status != "succeeded"]
    if as_json:
        show_json({"batch": batch_id, "results": out / "results.ndjson", "failed": len(failed)})
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
    for image, path in zip(result.images, _paths(result, out), strict=True):
        if not path.exists():
            save(path, client.file(image.url))
    return result


def _paths(result: BatchResult, out: Path) -> list[Path]:
    """The files of a line's pictures."""
    return [out / f"{result.line:05d}-{image.index:02d}.{image.url.rpartition('.')[2]}" for image in result.images]


def _save_samples(pictures: Sequence[Path], npz: Path) -> None:
    """Write `arr_0`, `uint8` (N,H,W,3), and `arr_1`, the class indices (N,) if all pictures have a class.

    Pictures are read one at a time, because fifty thousand need not fit in memory.

    Raises:
        InvalidRequest: there are none, or their sizes differ.
    """
    sizes, labels = set(), []
    for path in pictures:
        labels.append(read(encoded_picture(path.read_bytes())).request.get("class_label"))
        with Image.open(path) as picture:
            sizes.add(picture.size)
    if len(sizes) != 1:
        found = ", ".join(f"{height}x{width}" for width, height in sorted(sizes)[:4]) or "no pictures"
        raise InvalidRequest(f"--npz takes pictures of one size, and there are {found}", field="npz")
    [(width, height)] = sizes
    npz.parent.mkdir(parents=True, exist_ok=True)
    part = npz.with_name(f".{npz.name}.part")
    with ZipFile(part, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as array:
            array.write(_npy_header("|u1", (len(pictures), height, width, 3)))
            for path in pictures:
                with Image.open(path) as picture:
                    array.write(picture.convert("RGB").tobytes())
        if None not in labels:
            with archive.open("arr_1.npy", "w") as array:
                array.write(_npy_header("<i8", (len(labels),)) + struct.pack(f"<{len(labels)}q", *labels))
    os.replace(part, npz)


def _npy_header(kind: str, shape: tuple[int, ...]) -> bytes:
    """What precedes the numbers in an .npy file (version 1.0): numpy itself is not installed with the client."""
    text = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode("latin1")
    before = len(b"\x93NUMPY\x01\x00") + 2
    text += b" " * (-(before + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


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
