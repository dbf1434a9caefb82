"""A list of configuration keys, and the check of a file against it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

from models.pack import InvalidPack

_SHOWN = 60  # characters of a value in a message


class Use(Enum):
    """What any value of a key does."""

    HONOURED = auto()  # the class builds or computes by it, called as in diffusers' pipeline; or our code reads it
    UNUSED = auto()  # it changes nothing that is computed here


HONOURED, UNUSED = Use.HONOURED, Use.UNUSED


@dataclass(frozen=True)
class SameAs:
    """The value of another key, or null."""

    key: str


Rule = Use | SameAs | type[int] | tuple[Any, ...]
"""Values that a key may have: any, another key's, any whole number, or one of these."""
Keys = Mapping[str, Rule]
"""All keys that a configuration may have."""


def honoured(names: str) -> Keys:
    """Keys, separated by spaces, of which any value is honoured."""
    return dict.fromkeys(names.split(), HONOURED)


def unused(names: str) -> Keys:
    """Keys, separated by spaces, of which any value changes nothing."""
    return dict.fromkeys(names.split(), UNUSED)


METADATA: Keys = unused("_class_name _diffusers_version _name_or_path _commit_hash")


def defaults(network: type) -> Mapping[str, Any]:
    """The keys that a network's class reads from its configuration, with their defaults."""
    signature = inspect.signature(getattr(network, "config_class", None) or network)
    return {name: parameter.default for name, parameter in signature.parameters.items()}


def every_key(network: type) -> Keys:
    """The keys of a network of our own, which reads all of them."""
    return {**METADATA, **dict.fromkeys(defaults(network), HONOURED)}


def check_keys(config: Mapping[str, Any], keys: Keys, path: Path | str, given: Mapping[str, Any] | None = None) -> None:
    """Check a configuration against a list of keys.

    Args:
        config: the parsed file.
        keys: the keys that it may have.
        path: the file, for the message.
        given: the values of keys that the file leaves out.

    Raises:
        InvalidPack: it has another key, or a key has another value; in a line that names both and what is served.
    """
    for key, value in config.items():
        if key not in keys:
            raise InvalidPack(f"{path}: {key} is {_shown(value)}, and no such key is read here; leave it out")
    values = {**(given or {}), **config}
    for key, rule in keys.items():
        if key in values and not _accepts(rule, values, key):
            left_out = "" if key in config else " (left out)"
            raise InvalidPack(f"{path}: {key} is {_shown(values[key])}{left_out}; served: {_served(rule, values)}")


def _accepts(rule: Rule, values: Mapping[str, Any], key: str) -> bool:
    value = values[key]
    match rule:
        case Use():
            return True
        case SameAs():
            return value in (None, values.get(rule.key))
        case tuple():
            return value in rule
        case _:
            return isinstance(value, int) and not isinstance(value, bool)


def _served(rule: Rule, values: Mapping[str, Any]) -> str:
    match rule:
        case SameAs():
            return f"{_shown(values.get(rule.key))}, as {rule.key}"
        case tuple():
            return ", ".join(map(_shown, rule))
        case _:
            return "a whole number"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
