"""The log that all programs write: a line an event, for people or as JSON, with the job and request it is about."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import Any, Literal, TextIO

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

log = logging.getLogger(__name__)

_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN = re.compile(r"[\w.:/@+,=-]+")
_ids: ContextVar[Mapping[str, str]] = ContextVar("ids", default=MappingProxyType({}))


class LogSettings(BaseSettings):
    """How a program logs, from the environment (`CYNOSURE_LOG_…`)."""

    model_config = SettingsConfigDict(env_prefix="CYNOSURE_LOG_", frozen=True)

    format: Literal["console", "json"] = Field(
        "console", description="console: a line of text an event. json: an object a line (docs/logs-and-traces.md)."
    )


def keep(**ids: str) -> None:
    """Add ids to every line that this thread or task logs from now on; empty ones are left out."""
    _ids.set({**_ids.get(), **{name: value for name, value in ids.items() if value}})


@contextmanager
def about(**ids: str) -> Iterator[None]:
    """The same for the lines that are logged inside."""
    before = _ids.get()
    keep(**ids)
    try:
        yield
    finally:
        _ids.set(before)


def kept(name: str) -> str:
    """An id that was added, or an empty string."""
    return _ids.get().get(name, "")


def write_to(stream: TextIO, form: str) -> None:
    """Log to a stream from now on, in a form of `LogSettings.format`; Python's warnings and uncaught errors, too."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if form == "json" else ConsoleLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)
    sys.excepthook, threading.excepthook = _log_fatal, _log_fatal_of_thread
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else it logs every request


def _log_fatal(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        log.critical("ended by an error", exc_info=(kind, error, traceback))


def _log_fatal_of_thread(of: threading.ExceptHookArgs) -> None:
    if of.exc_value is not None and not isinstance(of.exc_value, SystemExit):
        name = of.thread.name if of.thread is not None else "?"
        log.critical("thread %s ended by an error", name, exc_info=(of.exc_type, of.exc_value, of.exc_traceback))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What a line is about: the ids of its thread or task, and the `extra` of its call, which take precedence."""
    given = {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD and value is not None}
    return {**_ids.get(), **given}


class ConsoleLines(logging.Formatter):
    """`TIME LOGGER LEVEL message name=value …`; only a traceback takes further lines, which are indented.

    Control characters are escaped: what a client sent can't forge a line.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(name)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without a traceback."""
        line = _escaped(super().formatMessage(record))
        return " ".join([line, *(f"{name}={_written(value)}" for name, value in _fields(record).items())])

    def formatException(self, ei: Any) -> str:
        """The traceback."""
        return "\n".join(f"  {_escaped(line)}" for line in super().formatException(ei).splitlines())


def _escaped(text: str) -> str:
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def _written(value: Any) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


class JsonLines(logging.Formatter):
    """An object a line: `time` (UTC), `level`, `logger`, `message`, fields, and `exception` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
