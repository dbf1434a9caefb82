"""The Lua scripts, one per transition, and the arguments that most of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redis.commands.core import AsyncScript, Script

from jobs.settings import StoreSettings
from jobs.store.keyspace import Keys

_FOLDER = Path(__file__).parent / "lua"
MAX_EVENTS = 256
"""Events kept per job; a follower that is further behind misses the oldest."""
MAX_ATTEMPTS_KEPT = 16
"""Attempts kept in a job's history; a job may be handed back in good order any number of times."""
_QUEUE_SCRIPTS = frozenset({"accept", "claim", "finish", "requeue", "cancel"})
# These scripts run even at the store's memory limit: they keep accepted jobs alive or let their owner see and end them,
# and they free memory or need next to none.
_RUN_WHEN_FULL = frozenset(
    {"heartbeat", "keep_quarantine", "requeue", "cancel", "take", "charge", "revoke_key", "batch_look", "batch_cancel"}
    | {"model_drop"}
    | {"webhook_settle", "webhook_take", "webhook_note"}
)
_READ_ONLY = frozenset({"look"})  # these run at the memory limit too


def script(name: str) -> str:
    """The text of a script.

    Its first line makes Redis check its memory limit once, before the script, and not at each of its writes. So a
    transition happens as a whole or not at all.
    """
    parts = ("_levels", "_queue") if name in _QUEUE_SCRIPTS else ("_levels",) if name == "look" else ()
    shared = "".join(map(_text, parts))
    flags = " flags=allow-oom" if name in _RUN_WHEN_FULL else " flags=no-writes" if name in _READ_ONLY else ""
    return f"#!lua{flags}\n{shared}{_text(name)}"


def every_script() -> Mapping[str, str]:
    """The texts of all scripts by name."""
    names = sorted(path.stem for path in _FOLDER.rglob("*.lua") if not path.stem.startswith("_"))
    return {name: script(name) for name in names}


def call_of(script: Script | AsyncScript, keys: Sequence[str], args: Sequence[str | int | float]) -> Any:
    """The arguments of EVALSHA, for pipelines: by itself the library first asks the store whether it has the script."""
    return script.sha, len(keys), *keys, *args


def _text(name: str) -> str:
    [path] = _FOLDER.rglob(f"{name}.lua")
    return path.read_text()


def queue_args(keys: Keys, settings: StoreSettings) -> list[str | int]:
    """The first arguments of every queue script."""
    return [f"{keys.prefix}:", settings.unfinished_ttl_s]


def known_ttl_s(settings: StoreSettings) -> int:
    """Seconds for which a job's id is remembered: longer than its record."""
    return settings.unfinished_ttl_s + settings.result_ttl_s + settings.tombstone_ttl_s
