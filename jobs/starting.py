"""What every program does when it starts: it reads its settings, or ends with one line that says what is wrong."""

from __future__ import annotations

import difflib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar, get_origin

from pydantic import AliasChoices, ValidationError
from pydantic_settings import BaseSettings, SettingsError

from jobs.logs import LogSettings, write_to

log = logging.getLogger(__name__)

Settings = TypeVar("Settings", bound=BaseSettings)

_PREFIX = "CYNOSURE_"
_PROGRAMS = ("CYNOSURE_GATEWAY_", "CYNOSURE_METRICS_", "CYNOSURE_OUTBOUND_", "CYNOSURE_REVIEW_", "CYNOSURE_WORKER_")
"""Prefixes of settings that not every program reads."""
_ELSEWHERE = frozenset(
    {
        *("CYNOSURE_URL", "CYNOSURE_API_KEY"),  # the command line
        *("CYNOSURE_BIND", "CYNOSURE_PORT", "CYNOSURE_STORE_MEMORY", "CYNOSURE_STORE_CONTAINER_MEMORY"),
        *("CYNOSURE_GRAFANA_PORT", "CYNOSURE_DOMAIN"),
        *("CYNOSURE_GATEWAY_MEMORY", "CYNOSURE_WORKER_MEMORY"),
        *("CYNOSURE_MODELS_ROOT", "CYNOSURE_MODELS_HUB", "CYNOSURE_REVIEW"),  # workers
    }
)
"""Variables that not every program reads, and whose names don't tell which."""


class InvalidSettings(ValueError):
    """A setting has a wrong value; the message names its variable or option and says what would be right."""


def read_settings(kind: type[Settings], **given: Any) -> Settings:
    """Settings from the environment. `given` are those from the command line, which take precedence.

    Raises:
        InvalidSettings: a value is wrong.
    """
    try:
        return kind(**given)
    except SettingsError as error:
        field = str(error).split('"')[1]  # it has no other trace of the field
        variable = _variable(kind, field)
        value = next(value for name, value in os.environ.items() if name.upper() == variable)
        likely = json.dumps([part.strip(' "') for part in value.strip("[]").split(",")])
        form = "object" if get_origin(kind.model_fields[field].annotation) is dict else f"list, such as {likely}"
        description = kind.model_fields[field].description
        raise InvalidSettings(f"{variable}={value!r}: write a JSON {form} ({description})") from None
    except ValidationError as error:
        raise InvalidSettings("; ".join(_explained(kind, part, given) for part in error.errors())) from None


def _explained(kind: type[BaseSettings], error: Any, given: Iterable[str]) -> str:
    text = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:  # about several fields, which it names
        return text
    name = next(name for name in kind.model_fields if error["loc"][0] in (name, _variable(kind, name)))
    field = kind.model_fields[name]
    is_secret = "Secret" in str(field.annotation) or not field.repr
    value = "" if is_secret else f"={str(error['input'])[:100]!r}"
    where = f"--{name.replace('_', '-')}" if name in given else _variable(kind, name)
    return f"{where}{value}: {text[:1].lower()}{text[1:]} ({field.description})"


def _variable(kind: type[BaseSettings], name: str) -> str:
    alias = kind.model_fields[name].validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else (_prefix(kind) + name).upper()


def _prefix(kind: type[BaseSettings]) -> str:
    return str(kind.model_config.get("env_prefix", ""))


def unknown_variables(*kinds: type[BaseSettings]) -> dict[str, str | None]:
    """Variables of the environment that begin like settings and are none, each with the most similar setting, if any.

    Those that begin like the settings of other programs are left to these programs.
    """
    read: tuple[type[BaseSettings], ...] = (LogSettings, *kinds)
    known = {_variable(kind, name) for kind in read for name in kind.model_fields}
    others = tuple(set(_PROGRAMS) - {_prefix(kind) for kind in kinds})
    names = [name for name in os.environ if name.upper().startswith(_PREFIX)]
    unknown = sorted(
        name for name in names if name.upper() not in known | _ELSEWHERE and not name.upper().startswith(others)
    )
    ends = {name.removeprefix(_PREFIX): name for name in known | _ELSEWHERE}
    similar = {name: difflib.get_close_matches(name.upper().removeprefix(_PREFIX), ends, 1) for name in unknown}
    return {name: ends[found[0]] if found else None for name, found in similar.items()}


def warn_of_unknown_variables(*kinds: type[BaseSettings]) -> None:
    """Log a line for every variable of the environment that begins like a setting and is none."""
    for name, similar in unknown_variables(*kinds).items():
        hint = f"; did you mean {similar}?" if similar else ""
        log.warning("there is no setting %s, so it has no effect%s", name, hint)


@contextmanager
def refusing(program: str, *kinds: type[Exception]) -> Iterator[None]:
    """End the program with one line and `EX_CONFIG`, which tells a supervisor not to restart it, after such an error.

    Args:
        program: its name, which begins the line.
        kinds: errors that a restart would meet again.
    """
    try:
        yield
    except kinds as error:
        sys.stderr.write(f"{program}: {error}\n")
        sys.exit(os.EX_CONFIG)


def signal_name(number: int) -> str:
    """What stopped a program, as people say it."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def log_to(stream: TextIO) -> None:
    """Log to a stream, as all programs do.

    Raises:
        InvalidSettings: there is no such format.
    """
    write_to(stream, read_settings(LogSettings).format)
