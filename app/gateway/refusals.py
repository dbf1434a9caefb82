"""What pydantic found wrong, as one of our own errors."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import ValidationError

from cynosure.errors import InvalidRequest, UnknownField


def refusal_of(error: ValidationError, known: Iterable[str]) -> InvalidRequest:
    """The first fault, by its field; `known` are the fields that there are."""
    fault = error.errors()[0]
    field = str(fault["loc"][0]) if fault["loc"] else "body"
    if fault["type"] == "extra_forbidden":
        return UnknownField(field, sorted(known))
    return InvalidRequest(f"{field}: {fault['msg']}.", field=field)
