"""Values that shells complete: the server's if it answers at once, otherwise those of the bundled models."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import typer

from cynosure.client import DEFAULT_URL, Client
from cynosure.client.attempts import Retries
from cynosure.contract import GenerateRequest, ModelCard
from cynosure.errors import CynosureError

BUNDLED: Mapping[str, Sequence[str]] = {
    "emoji": ("noto", "fluent", "twemoji"),
    "fashion": (
        "t-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
}
"""Labels by model."""
SAMPLERS = (
    "ddpm",
    "ddim",
    "euler",
    "euler_ancestral",
    "heun",
    "lms",
    "dpmpp_2m",
    "dpmpp_3m",
    "dpmpp_2m_sde",
    "dpm_single",
    "deis",
    "kdpm2",
    "tcd",
    "lcm",
    "unipc",
    "kdpm2_ancestral",
    "pndm",
    "sa_solver",
    "ipndm",
    "edm_euler",
    "edm_dpmpp_2m",
    "flow_euler",
)
_TIMEOUT_S = 0.5  # people notice a longer pause after TAB


def models(ctx: typer.Context) -> list[str]:
    """Names of models."""
    return [card.name for card in _cards(ctx)] or list(BUNDLED)


def labels(ctx: typer.Context) -> list[str]:
    """Names of labels, of the model in the command line or of all."""
    known = {card.name: card.labels for card in _cards(ctx)} or BUNDLED
    names = known.get(ctx.params.get("model") or "") or [label for of_model in known.values() for label in of_model]
    if "bash" in os.environ.get("_CYNOSURE_COMPLETE", ""):  # which inserts words as they are
        return [name.replace(" ", "\\ ") for name in names]
    return list(names)


def several_labels(ctx: typer.Context, incomplete: str) -> list[str]:
    """The last of several labels separated by commas."""
    before, comma, _ = incomplete.rpartition(",")
    return [f"{before}{comma}{label}" for label in labels(ctx)]


def samplers(ctx: typer.Context) -> list[str]:
    """Names of samplers, of the model in the command line or of all."""
    cards = _cards(ctx)
    chosen = [card for card in cards if card.name == ctx.params.get("model")] or cards
    return list(dict.fromkeys(name for card in chosen for name in card.samplers) or SAMPLERS)


def assignments() -> list[str]:
    """Fields of a request, each with its equals sign."""
    return [f"{name}=" for name in GenerateRequest.model_fields]


def _cards(ctx: typer.Context) -> Sequence[ModelCard]:
    url, api_key = ctx.params.get("url") or DEFAULT_URL, ctx.params.get("api_key")
    try:
        with Client(url, api_key=api_key, timeout_s=_TIMEOUT_S, retries=Retries(times=0)) as client:
            return client.models()
    except (CynosureError, ValueError):
        return ()
