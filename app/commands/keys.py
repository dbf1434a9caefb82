"""`python -m app.commands.keys`: create, list, rotate and revoke API keys.

It works on the store and not over HTTP: anyone who can reach the store owns the deployment anyway, the first key needs
no other key, and the gateway has no route that could create keys.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from cynosure.errors import StoreUnavailable
from jobs.accounts.allowance import Limits
from jobs.accounts.api_keys import ApiKey, KeyRing, NoSuchKey, Scope
from jobs.settings import StoreSettings
from jobs.starting import InvalidSettings, read_settings

URL_FILE = "store.url"
"""File in the data folder of `cynosure up` that holds the address of its store."""
NO_CREDENTIALS: dict[str, None] = {"redis_password": None, "redis_password_file": None, "redis_ca_file": None}
"""For the store of `cynosure up`, which needs none: those in the environment belong to another store."""


def _scopes(text: str) -> frozenset[Scope]:
    try:
        return frozenset(Scope(part.strip()) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; known: {', '.join(Scope)}") from None


def _between(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        if not text.replace(".", "", 1).isdecimal() or not low <= float(text) <= high:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number from {low:g} to {high:g}")
        return float(text)

    return number


def _whole(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {low} to {high}")
        return int(text)

    return number


def _name(text: str) -> str:
    if not 1 <= len(text) <= 100 or not text.isprintable():
        raise argparse.ArgumentTypeError("a name must have 1 to 100 printable characters")
    return text


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    store = argparse.ArgumentParser(add_help=False)
    store.add_argument("--data", type=Path, default=Path("data"), help="data folder of `cynosure up`; or set REDIS_URL")
    parser = argparse.ArgumentParser(prog="cynosure keys", description="Create, list, rotate and revoke API keys.")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", parents=[store], help="create a key and print its token, once")
    create.add_argument("--name", type=_name, required=True, help="owner or purpose")
    create.add_argument(
        "--scopes",
        type=_scopes,
        default=frozenset({Scope.SUBMIT, Scope.READ}),
        help="separated by commas: submit, read, admin (default: submit,read)",
    )
    create.add_argument("--days", type=_whole(1, 3650), default=365, help="lifetime of the key (default: %(default)s)")
    create.add_argument(
        "--requests-per-s", type=_between(0, 1e6), default=50.0, help="rate limit; 0 for none (default: %(default)s)"
    )
    create.add_argument(
        "--burst", type=_whole(1, 10**6), default=100, help="requests that may come at once (default: %(default)s)"
    )
    create.add_argument("--pictures-per-day", type=_whole(1, 10**12), help="quota of accepted pictures")
    create.add_argument("--evaluations-per-day", type=_whole(1, 10**12), help="quota of accepted steps × pictures")
    commands.add_parser("list", parents=[store], help="list all keys, without their secrets")
    rotate = commands.add_parser("rotate", parents=[store], help="print a new token for a key, which keeps its jobs")
    rotate.add_argument("id")
    rotate.add_argument(
        "--overlap-hours",
        type=_whole(0, 720),
        default=24,
        help="how long the old token stays valid (default: %(default)s)",
    )
    revoke = commands.add_parser("revoke", parents=[store], help="revoke a key (takes effect within a second)")
    revoke.add_argument("id")
    return parser.parse_args(arguments)


def _settings(data: Path) -> StoreSettings:
    url_file = data / URL_FILE
    if "REDIS_URL" not in os.environ and url_file.exists():
        return read_settings(StoreSettings, redis_url=url_file.read_text().strip(), **NO_CREDENTIALS)
    return read_settings(StoreSettings)


def _line(key: ApiKey) -> str:
    now_ms = datetime.now(UTC).timestamp() * 1000
    state = "valid" if key.is_valid(now_ms) else "revoked" if key.is_revoked else "expired"
    until = datetime.fromtimestamp(key.expires_ms / 1000, UTC).date()
    return f"{key.id}  {state:7}  until {until}  {','.join(sorted(key.scopes)):17}  {key.name}"


async def _run(arguments: argparse.Namespace) -> None:
    async with KeyRing.connect(_settings(arguments.data)) as ring:
        match arguments.command:
            case "create":
                limits = Limits(
                    requests_per_s=arguments.requests_per_s or None,
                    burst=arguments.burst,
                    pictures_per_day=arguments.pictures_per_day,
                    evaluations_per_day=arguments.evaluations_per_day,
                )
                key, token = await ring.create(arguments.name, arguments.scopes, days=arguments.days, limits=limits)
                sys.stderr.write(f"Key {key.id}. Its token is shown only once:\n")
                sys.stdout.write(f"{token}\n")
            case "list":
                sys.stdout.writelines(f"{_line(key)}\n" for key in await ring.all())
            case "rotate":
                token = await ring.rotate(arguments.id, overlap_s=arguments.overlap_hours * 3600)
                sys.stderr.write("The new token is shown only once:\n")
                sys.stdout.write(f"{token}\n")
            case "revoke":
                await ring.revoke(arguments.id)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exit with code 1 if it fails."""
    try:
        asyncio.run(_run(_parse(arguments)))
    except StoreUnavailable:
        sys.exit("cynosure keys: the store does not answer. Start `cynosure up` first, or set REDIS_URL or --data.")
    except (NoSuchKey, InvalidSettings) as error:
        sys.exit(f"cynosure keys: {error}")


if __name__ == "__main__":
    main()
