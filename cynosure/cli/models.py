"""`cynosure models`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from cynosure.cli.shared import ApiKey, AsJson, Url, refusing, show_json
from cynosure.client import DEFAULT_URL, Client


def models(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List the server's models."""
    with refusing(as_json), Client(url, api_key=api_key) as client:
        cards = client.models()
    if as_json:
        show_json(cards)
        return
    table = Table("model", "size", "labels", "guidance", "default", "samplers")
    for card in cards:
        table.add_row(
            card.name,
            f"{card.width}×{card.height}",
            ", ".join(card.labels),
            ", ".join(card.guidance_modes),
            f"{card.defaults.sampler}, {card.defaults.steps} steps",
            ", ".join(card.samplers),
        )
    Console().print(table)
