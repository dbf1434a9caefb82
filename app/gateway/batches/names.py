"""Names of a batch's pictures in its ZIP: by `custom_id`, or else by line."""

from __future__ import annotations

import re
import unicodedata

_UNSAFE = re.compile(r"[^\w .-]")
_MAX_BYTES = 200  # file systems allow 255 for the whole name


class MemberNames:
    """Gives every line a name of its own; asked line by line in order, it gives the same names each time.

    A name is safe as a file's on any system. A line whose `custom_id` leaves nothing has its number as its name; one
    whose name an earlier line has, in upper or lower case, has its number behind it.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, line: int, custom_id: str | None) -> str:
        name = _safe(custom_id or "") or f"{line:05d}"
        if name.casefold() in self._taken:
            name = f"{name}~{line:05d}"  # no custom_id leaves a tilde
        self._taken.add(name.casefold())
        return name


def _safe(text: str) -> str:
    name = _UNSAFE.sub("_", unicodedata.normalize("NFC", text)).strip(" .")
    return name.encode()[:_MAX_BYTES].decode(errors="ignore").strip(" .")
