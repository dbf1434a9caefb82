"""JSON from clients: refusals say where it is wrong, and what would be right."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from cynosure.errors import MalformedBody

_CONSTANT = re.compile(r'"(?:\\.|[^"\\])*"|(-?Infinity|NaN)', re.DOTALL)  # a string, or what Python reads as a number
_HINTS = (
    (r"'|[‘’“”]", "strings and names take plain double quotes"),
    (r"True\b|False\b", "write true and false in lower case"),
    (r"None\b|undefined\b|nil\b", "write null"),
    (r"//|/\*|#", "JSON has no comments"),
    (r"[A-Za-z_]\w*\s*:", "names take double quotes"),
    (r"\s*$", "it ends too early"),
)
"""By what the text goes on with, where it stops being JSON."""


def parsed_json(raw: bytes, subject: str = "The body", *, is_line: bool = False) -> Any:
    """Read a JSON text.

    Args:
        raw: the text, in UTF-8.
        subject: what the text is, for the error.
        is_line: it is one line of several, so the error names only the column.

    Raises:
        MalformedBody: says where the text is wrong.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before, byte = error.object[: error.start].decode(), error.object[error.start]  # without a byte order mark
        looks = "; it looks like UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise MalformedBody(
            f"{subject} is not UTF-8: byte 0x{byte:02x} {_place(before, len(before), is_line)}{looks}."
        ) from error
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=_members)
    except json.JSONDecodeError as error:
        reason, at = error.msg.removesuffix(" at"), error.pos
        hint = _hint(text, reason, at)
    except _NotANumber as error:
        reason = f"{error} is not a JSON number"
        at = next(match.start(1) for match in _CONSTANT.finditer(text) if match.group(1))
        hint = "write a finite number, or leave the field out"
    except NamedTwice as error:
        raise MalformedBody(f"{subject} {error}.") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]
        raise MalformedBody(f"{subject} can't be read: {reason}.") from error
    told = f" ({hint})" if hint else ""
    raise MalformedBody(f"{subject} is not JSON: {reason} {_place(text, at, is_line)}{told}.")


class JSONRoute(APIRoute):
    """A route whose body is read by `parsed_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given a request that reads JSON in our way."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JSONRequest(request.scope, request.receive))

        return handle


class _JSONRequest(Request):
    async def json(self) -> Any:
        return parsed_json(await self.body())


class NamedTwice(ValueError):
    """An object has two members of one name, of which parsers keep one or the other (RFC 8259, section 4)."""

    def __init__(self, name: str) -> None:
        super().__init__(f"has '{name[:100]}' twice; write it once")


class Members(dict[str, Any]):
    """The members of an object while it is read; the second of one name raises `NamedTwice`."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self:
            raise NamedTwice(name)
        super().__setitem__(name, value)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise NamedTwice(next(name for name in names if names.count(name) > 1))
    return found


class _NotANumber(ValueError):
    pass


def _refuse(constant: str) -> None:
    raise _NotANumber(constant)


def _place(text: str, at: int, is_line: bool) -> str:
    column = at - text.rfind("\n", 0, at)
    return f"at column {column}" if is_line else f"at line {text.count(chr(10), 0, at) + 1}, column {column}"


def _hint(text: str, reason: str, at: int) -> str | None:
    before = text[:at].rstrip()
    if (text[at : at + 1] in ("}", "]") and before.endswith(",")) or "trailing comma" in reason:
        return "leave out the comma before the end"
    if reason == "Invalid control character":
        return "write a line break within a string as \\n"
    if reason == "Extra data":
        return "there must be one value; several requests go to POST /batches"
    return next((hint for start, hint in _HINTS if re.match(start, text[at:])), None)
