"""Numbers in requests. `true` and `false` are none, though Python would read them as 1 and 0."""

from __future__ import annotations

from typing import Any

from pydantic import BeforeValidator
from pydantic_core import PydanticKnownError


def _integer(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticKnownError("int_type")
    return value


def _real(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticKnownError("float_type")
    return value


# After the limits of an annotation: before them, the limits would be missing from the schema.
Integer = BeforeValidator(_integer)
Real = BeforeValidator(_real)
