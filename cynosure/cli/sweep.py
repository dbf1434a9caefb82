"""`cynosure sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cynosure.cli import completion
from cynosure.cli.shared import (
    ApiKey,
    AsJson,
    ClipSkip,
    LongPrompts,
    Model,
    Sampler,
    Size,
    StepCaches,
    Steps,
    Syntax,
    Url,
    cache_of,
    refusing,
    save_beside,
    show_json,
    sides,
    wait_showing,
)
from cynosure.client import DEFAULT_URL, Client
from cynosure.contract import GuidanceMode, SweepRequest
from cynosure.refusals import parsed


def _parts(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def sweep(
    labels: Annotated[
        str | None,
        typer.Option(autocompletion=completion.several_labels, help="classes, by name or index, separated by commas"),
    ] = None,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", "--prompts", help="a prompt; give it several times")
    ] = None,
    scales: Annotated[str | None, typer.Option(help="guidance scales, separated by commas")] = None,
    seeds: Annotated[str | None, typer.Option(help="seeds, separated by commas")] = None,
    guidance: Annotated[GuidanceMode | None, typer.Option(help="source of the guidance")] = None,
    interval: Annotated[
        str | None, typer.Option(help="guide only in this part of the trajectory, such as 0.2,1")
    ] = None,
    sampler: Sampler = None,
    steps: Steps = None,
    cache: StepCaches = None,
    size: Size = None,
    model: Model = None,
    long_prompt: LongPrompts = None,
    prompt_syntax: Syntax = None,
    clip_skip: ClipSkip = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for the PNGs and sheet.png", file_okay=False)] = Path(
        "out"
    ),
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Draw a grid of labels or prompts, scales and seeds, and save it with a contact sheet."""
    shared: dict[str, Any] = {
        "guidance_mode": guidance,
        "guidance_interval": _parts(interval) or None,
        "sampler": sampler,
        "steps": steps,
        "cache": cache_of(cache),
        **sides(size),
        "model": model,
        "long_prompt": long_prompt,
        "prompt_syntax": prompt_syntax,
        "clip_skip": clip_skip,
    }
    body = {
        "request": {key: value for key, value in shared.items() if value is not None},
        "class_labels": [int(part) if part.isdecimal() else part for part in _parts(labels)],
        "prompts": prompts or [],
        "guidance_scales": _parts(scales),
        "seeds": _parts(seeds),
    }
    with refusing(as_json), Client(url, api_key=api_key) as client:
        job = wait_showing(client, client.submit_sweep(parsed(SweepRequest, body)))
        paths = [save_beside(out / f"{image.index:03d}.png", client.image(job.id, image.index)) for image in job.images]
        sheet = save_beside(out / "sheet.png", client.sheet(job.id))
    if as_json:
        show_json({"job": job, "files": paths, "sheet": sheet})
    else:
        typer.echo(f"{len(paths)} pictures and {sheet}")
