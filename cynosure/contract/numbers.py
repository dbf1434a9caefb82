"""Numbers in requests, and labels. `true` and `false` are none, though Python would read them as 1 and 0."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, StrictInt, StrictStr
from pydantic_core import PydanticKnownError

from cynosure.contract.terms import MAX_SCALE


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


def _ordered_interval(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError("its start must not be greater than its end")
    return interval


Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), Real]
Scale = Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE, allow_inf_nan=False), Real]
Bound = Annotated[float, Field(ge=0, allow_inf_nan=False), Real]
Interval = Annotated[tuple[Bound, Bound], AfterValidator(_ordered_interval)]
Label = StrictInt | Annotated[StrictStr, Field(max_length=200)]
