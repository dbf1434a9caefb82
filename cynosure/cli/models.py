"""`cynosure models`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from cynosure.cli.generate import DEFAULT_URL, ApiKey, Url, refusing
from cynosure.client import Client


def models(url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """List what the server can draw."""
    table = Table("model", "size", "labels", "guidance", "default", "samplers")
    with refusing(), Client(url, api_key=api_key) as client:
        for card in client.models():
            table.add_row(
                card.name,
                f"{card.width}×{card.height}",
                ", ".join(card.labels),
                ", ".join(card.guidance_modes),
                f"{card.defaults.sampler}, {card.defaults.steps} steps",
                ", ".join(card.samplers),
            )
    Console().print(table)
