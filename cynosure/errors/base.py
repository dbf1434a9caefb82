"""The root of the tree of errors."""

from __future__ import annotations

from typing import ClassVar


class CynosureError(Exception):
    """Base of the tree.

    Attributes:
        code: stable machine-readable name.
        status: HTTP status.
        title: name of this kind of problem, the same at every occurrence.
        field: the request field at fault, if there is one.
        retry_after_s: seconds after which a retry makes sense, if known.
        line: the line of a batch at fault, counted from 1.
        faults: all faults, as field and what is wrong with it, if there may be several.
    """

    code: ClassVar[str] = "internal"
    status: int = 500
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, field: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.retry_after_s = retry_after_s
        self.line: int | None = None
        self.faults: tuple[tuple[str, str], ...] = ()
