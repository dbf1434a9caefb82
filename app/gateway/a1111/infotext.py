"""The `parameters` text that A1111 writes into pictures, taken apart."""

from __future__ import annotations

import re
from collections.abc import Iterator

_NEGATIVE = "Negative prompt:"
_MIN_FIELDS = 3  # fewer in the last line, and it is part of the prompt, as in A1111
_KEY = re.compile(r"\w[\w \-/]{0,99}")
_SIZE = re.compile(r"(\d{1,9})x(\d{1,9})")


def parsed_infotext(text: str) -> dict[str, str]:
    """The fields of the text by A1111's names, with `Prompt`, `Negative prompt`, and `Size` as `Size-1`, `Size-2`."""
    *lines, last = text.strip().split("\n")
    fields = dict(_fields(last))
    if len(fields) < _MIN_FIELDS:
        lines, fields = [*lines, last], {}
    at = next((number for number, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[at:]).removeprefix(_NEGATIVE).strip()
    found = {"Prompt": "\n".join(lines[:at]).strip(), "Negative prompt": negative}
    for name, value in fields.items():
        if size := _SIZE.fullmatch(value):
            found |= {f"{name}-1": size[1], f"{name}-2": size[2]}
        else:
            found[name] = value
    return found


def _fields(line: str) -> Iterator[tuple[str, str]]:
    """The `name: value` between the commas of a line; commas within quotes are part of the value."""
    begin, is_quoted = 0, False
    for at, sign in enumerate(f"{line},"):
        if sign == '"' and line[at - 1 : at] != "\\":
            is_quoted = not is_quoted
        if sign != "," or (is_quoted and at < len(line)):
            continue
        name, colon, value = line[begin:at].strip().partition(":")
        if colon and _KEY.fullmatch(name):
            yield name, value.strip()
        begin = at + 1
