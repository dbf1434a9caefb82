"""The scripts, one a transition, and the keys and times that most of them take."""

from __future__ import annotations

from pathlib import Path

from jobs.settings import StoreSettings
from jobs.store.keyspace import Keys

_FOLDER = Path(__file__).parent / "lua"
MAX_EVENTS = 256
"""Of a job's events that are kept; a follower who is further behind misses the oldest."""
MAX_ATTEMPTS_TOLD = 16
"""Of a job's attempts that are kept; those handed back in good order may be many."""
_QUEUE_SCRIPTS = frozenset({"accept", "claim", "finish", "requeue", "cancel"})
# At the store's memory limit these go on: they keep what is accepted, let its owner look at it and end it, and free
# memory or take next to none.
_AT_THE_LIMIT = frozenset(
    {"heartbeat", "keep_quarantine", "requeue", "cancel", "take", "charge", "revoke_key", "batch_look", "batch_cancel"}
    | {"webhook_settle", "webhook_take", "webhook_note"}
)


def script(name: str) -> str:
    """The text of a script.

    Its first line makes Redis look at its memory limit before the script and not at every write within: a
    transition happens whole or not at all.
    """
    shared = _text("_queue") if name in _QUEUE_SCRIPTS else ""
    flags = " flags=allow-oom" if name in _AT_THE_LIMIT else ""
    return f"#!lua{flags}\n{shared}{_text(name)}"


def _text(name: str) -> str:
    [path] = _FOLDER.rglob(f"{name}.lua")
    return path.read_text()


def queue_args(keys: Keys, settings: StoreSettings) -> list[str | int]:
    """The first arguments of every script of the queue."""
    return [f"{keys.prefix}:", settings.unfinished_ttl_s]


def known_ttl_s(settings: StoreSettings) -> int:
    """Seconds for which an id is known: longer than any record of it."""
    return settings.unfinished_ttl_s + settings.result_ttl_s + settings.tombstone_ttl_s
