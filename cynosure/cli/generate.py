"""`cynosure generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cynosure.cli import completion
from cynosure.cli.shared import (
    ApiKey,
    AsJson,
    Assignments,
    ClipSkip,
    Controls,
    ImagePrompts,
    LongPrompts,
    Loras,
    Model,
    Sampler,
    Size,
    StepCaches,
    Steps,
    Syntax,
    Url,
    cache_of,
    controls_of,
    encoded,
    image_prompts_of,
    loras_of,
    merged,
    refusing,
    save_beside,
    show_json,
    sides,
    wait_showing,
)
from cynosure.client import DEFAULT_URL, Client
from cynosure.contract import GenerateRequest, GuidanceMode, Job
from cynosure.refusals import parsed

Label = Annotated[
    str | None,
    typer.Option(
        "--label",
        "--style",
        autocompletion=completion.labels,
        help="class, by name or index; with a prompt, the style",
    ),
]


def generate(
    label: Label = None,
    guidance: Annotated[GuidanceMode | None, typer.Option(help="source of the guidance")] = None,
    scale: Annotated[float | None, typer.Option(help="guidance scale")] = None,
    classifier_scale: Annotated[float | None, typer.Option(help="classifier scale, in mode combined")] = None,
    sampler: Sampler = None,
    steps: Steps = None,
    cache: StepCaches = None,
    size: Size = None,
    seed: Annotated[int | None, typer.Option(help="number that decides the noise", show_default="random")] = None,
    count: Annotated[int | None, typer.Option("-n", "--count", help="number of pictures", show_default="1")] = None,
    model: Model = None,
    prompt: Annotated[str | None, typer.Option(help="what to draw, for models that take prompts")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="what to steer away from")] = None,
    long_prompt: LongPrompts = None,
    prompt_syntax: Syntax = None,
    clip_skip: ClipSkip = None,
    loras: Loras = None,
    controls: Controls = None,
    image_prompts: ImagePrompts = None,
    init_image: Annotated[Path | None, typer.Option(help="picture to start from", exists=True, dir_okay=False)] = None,
    strength: Annotated[float | None, typer.Option(help="how far to depart from init_image, 0 to 1")] = None,
    mask_image: Annotated[
        Path | None, typer.Option(help="mask, white where init_image is redrawn", exists=True, dir_okay=False)
    ] = None,
    more: Assignments = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for the pictures", file_okay=False)] = Path("out"),
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Draw pictures and save them."""
    fields: dict[str, Any] = {
        "class_label": int(label) if label is not None and label.isdecimal() else label,
        "guidance_mode": guidance,
        "guidance_scale": scale,
        "classifier_scale": classifier_scale,
        "sampler": sampler,
        "steps": steps,
        "cache": cache_of(cache),
        "seed": seed,
        "num_images": count,
        **sides(size),
        "model": model,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "long_prompt": long_prompt,
        "prompt_syntax": prompt_syntax,
        "clip_skip": clip_skip,
        "loras": loras_of(loras),
        "controls": controls_of(controls),
        "image_prompts": image_prompts_of(image_prompts),
        "init_image": encoded(init_image),
        "strength": strength,
        "mask_image": encoded(mask_image),
    }
    with refusing(as_json), Client(url, api_key=api_key) as client:
        save_all(client, client.submit(parsed(GenerateRequest, merged(fields, more))), out, as_json)


def save_all(client: Client, job: Job, out: Path, as_json: bool) -> None:
    """Wait for the job, save its pictures and print their paths."""
    done = wait_showing(client, job)
    extension = done.request.output_format
    paths = [
        save_beside(
            out / f"{done.request.seed}-{image.index:02d}.{extension}", client.image(done.id, image.index, extension)
        )
        for image in done.images
    ]
    if as_json:
        show_json({"job": done, "files": paths})
        return
    for path in paths:
        typer.echo(path)
    for warning in done.warnings:
        typer.echo(f"warning: {warning}", err=True)
