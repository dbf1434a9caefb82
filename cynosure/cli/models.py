"""`cynosure models`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from cynosure.cli.shared import ApiKey, AsJson, Url, refusing, show_json, show_table
from cynosure.client import DEFAULT_URL, Client
from cynosure.contract import Sizes


def models(
    with_labels: Annotated[bool, typer.Option("--labels", help="list the labels instead of counting them")] = False,
    with_samplers: Annotated[
        bool, typer.Option("--samplers", help="list the samplers instead of counting them")
    ] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List the server's models."""
    with refusing(as_json), Client(url, api_key=api_key) as client:
        cards = client.models()
    if as_json:
        show_json(cards)
        return
    show_table(
        ("model", "size", "memory", "prompts", "default", "guidance", "labels", "samplers"),
        (
            (
                card.name,
                _size(card.sizes),
                f"{card.memory.total_bytes / 1e9:.2f} GB",
                "yes" if card.takes_prompt else "no",
                f"{card.defaults.sampler}, {card.defaults.steps} steps",
                f"{len(card.guidance_modes)} modes",
                _shown(card.labels, with_labels),
                _shown(card.samplers, with_samplers),
            )
            for card in cards
        ),
    )


def _size(sizes: Sizes) -> str:
    """The default, and what else there is."""
    default = "×".join(map(str, sizes.default))
    return default if sizes.is_one else f"{default}; sides {sizes.min_side} to {sizes.max_side}"


def _shown(names: Sequence[str], are_listed: bool) -> str:
    return ", ".join(names) if are_listed else str(len(names))
