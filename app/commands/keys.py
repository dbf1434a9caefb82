"""`python -m app.commands.keys`: create, list, rotate and revoke API keys, and revoke signed links.

It works on the store and not over HTTP: anyone who can reach the store owns the deployment anyway, the first key needs
no other key, and the gateway has no route that could create keys.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cynosure.cli.shared import show_table
from cynosure.errors import StoreUnavailable
from jobs.accounts.allowance import Limits
from jobs.accounts.api_keys import ApiKey, KeyRing, NoSuchKey, Scope
from jobs.accounts.links import LinkSigner
from jobs.settings import StoreSettings
from jobs.starting import InvalidSettings, read_settings
from jobs.store.answering import CLUSTER_ERRORS

URL_FILE = "store.url"
"""File in the data folder of `cynosure up` that holds the address of its store."""
NO_CREDENTIALS: dict[str, None] = {
    **{"redis_password": None, "redis_password_file": None, "redis_ca_file": None},
    **{"redis_sentinel_password": None, "redis_sentinel_password_file": None},
}
"""For the store of `cynosure up`, which needs none: those in the environment belong to another store."""


command = typer.Typer(
    help="Create, list, rotate and revoke API keys.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
Data = Annotated[Path, typer.Option(help="data folder of `cynosure up`; or set REDIS_URL")]
KeyId = Annotated[str, typer.Argument(metavar="ID", help="id of the key, as `cynosure keys list` prints it")]


def _scopes(text: str) -> frozenset[Scope]:
    try:
        return frozenset(Scope(part.strip()) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{error}; known: {', '.join(Scope)}") from None


def _name(text: str) -> str:
    if not 1 <= len(text) <= 100 or not text.isprintable():
        raise typer.BadParameter("a name must have 1 to 100 printable characters")
    return text


@command.command()
def create(
    name: Annotated[str, typer.Option(callback=_name, help="owner or purpose")],
    scopes: Annotated[
        frozenset,  # type: ignore[type-arg]  # typer parses with _scopes
        typer.Option(parser=_scopes, metavar="SCOPE,…", help="separated by commas: submit, read, admin"),
    ] = "submit,read",  # type: ignore[assignment]
    days: Annotated[int, typer.Option(min=1, max=3650, help="lifetime of the key")] = 365,
    requests_per_s: Annotated[float, typer.Option(min=0, max=1e6, help="rate limit; 0 for none")] = 50.0,
    burst: Annotated[int, typer.Option(min=1, max=10**6, help="requests that may come at once")] = 100,
    pictures_per_day: Annotated[int | None, typer.Option(min=1, max=10**12, help="quota of accepted pictures")] = None,
    evaluations_per_day: Annotated[
        int | None, typer.Option(min=1, max=10**12, help="quota of accepted steps × pictures")
    ] = None,
    data: Data = Path("data"),
) -> None:
    """Create a key and print its token, once."""
    limits = Limits(
        requests_per_s=requests_per_s or None,
        burst=burst,
        pictures_per_day=pictures_per_day,
        evaluations_per_day=evaluations_per_day,
    )

    async def work(ring: KeyRing) -> None:
        key, token = await ring.create(name, scopes, days=days, limits=limits)
        sys.stderr.write(f"Key {key.id}. Its token is shown only once:\n")
        sys.stdout.write(f"{token}\n")

    _run_on_keys(work, data)


@command.command("list")
def list_keys(data: Data = Path("data")) -> None:
    """List all keys, without their secrets."""

    async def work(ring: KeyRing) -> None:
        show_table(("key", "state", "expires", "scopes", "name"), [_row(key) for key in await ring.all()])

    _run_on_keys(work, data)


@command.command()
def rotate(
    key_id: KeyId,
    overlap_hours: Annotated[int, typer.Option(min=0, max=720, help="how long the old token stays valid")] = 24,
    data: Data = Path("data"),
) -> None:
    """Print a new token for a key, which keeps its jobs."""

    async def work(ring: KeyRing) -> None:
        token = await ring.rotate(key_id, overlap_s=overlap_hours * 3600)
        sys.stderr.write("The new token is shown only once:\n")
        sys.stdout.write(f"{token}\n")

    _run_on_keys(work, data)


@command.command()
def revoke(key_id: KeyId, data: Data = Path("data")) -> None:
    """Revoke a key; takes effect within a second."""

    async def work(ring: KeyRing) -> None:
        await ring.revoke(key_id)

    _run_on_keys(work, data)


@command.command()
def revoke_links(data: Data = Path("data")) -> None:
    """End every signed link to a picture, of all keys."""

    async def work(settings: StoreSettings) -> None:
        async with LinkSigner.connect(settings) as links:
            await links.revoke_all()

    _run(work, data)


def _settings(data: Path) -> StoreSettings:
    url_file = data / URL_FILE
    if "REDIS_URL" not in os.environ and url_file.exists():
        return read_settings(StoreSettings, redis_url=url_file.read_text().strip(), **NO_CREDENTIALS)
    return read_settings(StoreSettings)


def _row(key: ApiKey) -> tuple[str, ...]:
    now_ms = datetime.now(UTC).timestamp() * 1000
    state = "valid" if key.is_valid(now_ms) else "revoked" if key.is_revoked else "expired"
    until = datetime.fromtimestamp(key.expires_ms / 1000, UTC).date()
    return key.id, state, str(until), ",".join(sorted(key.scopes)), key.name


def _run_on_keys(work: Callable[[KeyRing], Coroutine[None, None, None]], data: Path) -> None:
    """Do the work on the keys of the store; exit with code 1 if it fails."""

    async def connected(settings: StoreSettings) -> None:
        async with KeyRing.connect(settings) as ring:
            await work(ring)

    _run(connected, data)


def _run(work: Callable[[StoreSettings], Coroutine[None, None, None]], data: Path) -> None:
    try:
        asyncio.run(work(_settings(data)))
    except StoreUnavailable as error:
        if isinstance(error.__cause__, CLUSTER_ERRORS):
            sys.exit(f"cynosure keys: {error.detail}")
        sys.exit("cynosure keys: the store does not answer. Start `cynosure up` first, or set REDIS_URL or --data.")
    except (NoSuchKey, InvalidSettings) as error:
        sys.exit(f"cynosure keys: {error}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; raise SystemExit if it fails."""
    try:
        command(arguments, prog_name="cynosure keys")
    except SystemExit as end:
        if end.code:
            raise


if __name__ == "__main__":
    main()
