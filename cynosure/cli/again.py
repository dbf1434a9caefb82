"""`cynosure again`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cynosure.cli import completion
from cynosure.cli.shared import (
    ApiKey,
    AsJson,
    Controls,
    ImagePrompts,
    Url,
    controls_of,
    encoded,
    image_prompts_of,
    merged,
    refusing,
    save_beside,
    show_json,
    wait_showing,
)
from cynosure.client import DEFAULT_URL, Client
from cynosure.contract import GenerateRequest
from cynosure.refusals import parsed


def again(
    picture: Annotated[
        Path, typer.Argument(metavar="PICTURE", exists=True, dir_okay=False, help="a picture made by Cynosure")
    ],
    init_image: Annotated[
        Path | None, typer.Option(help="the picture it was made from, if any", exists=True, dir_okay=False)
    ] = None,
    mask_image: Annotated[
        Path | None, typer.Option(help="the mask it was made with, if any", exists=True, dir_okay=False)
    ] = None,
    controls: Controls = None,
    image_prompts: ImagePrompts = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", autocompletion=completion.assignments, help="override a field"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", dir_okay=False, help="output file", show_default="PICTURE-again.png")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Reproduce a picture from the request stored in it, byte for byte unless fields are overridden."""
    fields: dict[str, Any] = {
        "from_image": encoded(picture),
        "init_image": encoded(init_image),
        "mask_image": encoded(mask_image),
        "controls": controls_of(controls),
        "image_prompts": image_prompts_of(image_prompts),
    }
    with refusing(as_json), Client(url, api_key=api_key) as client:
        request = parsed(GenerateRequest, merged(fields, more))
        job = wait_showing(client, client.submit(request))
        content = client.image(job.id, 0)
        path = save_beside(out or picture.with_name(f"{picture.stem}-again.png"), content)
    is_same = content == picture.read_bytes()
    if as_json:
        show_json({"job": job, "file": path, "same_bytes": is_same})
    else:
        typer.echo(f"{path}{': the same bytes' if is_same else ''}")
