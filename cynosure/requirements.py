"""What a value must be, in the voice of all our errors, from the fault that pydantic found in it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo

from cynosure.synonyms import MODES

_KINDS: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a string",
    "string_unicode": "a string of Unicode characters",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "url_type": "a URL",
    "url_parsing": "a whole URL, such as https://example.org/hook",
}
"""What a value of another kind must be."""
_RANGES: Mapping[str, str] = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "url_scheme": "a URL that begins with {expected_schemes}",
}
_LENGTHS: Mapping[str, str] = {
    "missing": "is missing",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "url_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} elements",
    "too_long": "must have at most {max_length} elements",
}


def requirement(faults: Sequence[Mapping[str, Any]], field: FieldInfo | None) -> str:
    """What is wrong with one value, to be said after its name, such as "must be at least 1".

    A value that may be of several kinds has a fault for each. If it is of one of them, only that one's fault counts.
    """
    inside = [fault for fault in faults if fault["type"] not in _KINDS]
    if inside:
        return _of_value(inside[0], field)
    kinds = dict.fromkeys(_KINDS[fault["type"]] for fault in faults)
    such_as = f", such as {field.examples[0]}" if "a list" in kinds and field is not None and field.examples else ""
    return f"must be {' or '.join(kinds)}{such_as}"


def _of_value(fault: Mapping[str, Any], field: FieldInfo | None) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    if kind in _RANGES:
        return "must be " + _RANGES[kind].format(**{name: _number(value) for name, value in context.items()})
    if kind in _LENGTHS:
        return _LENGTHS[kind].format(**context)
    if kind in ("enum", "literal_error"):
        known = re.findall(r"'([^']*)'", context["expected"])
        given = str(fault["input"])[:100].lower()
        close = [one for one in [MODES.get(given)] if one in known] or difflib.get_close_matches(given, known, n=1)
        return f"must be {context['expected']}" + (f" (did you mean '{close[0]}'?)" if close else "")
    if kind == "string_pattern_mismatch" and field is not None and field.examples:
        return f"must be like {', '.join(map(repr, field.examples))}"
    if kind == "value_error":
        return f"is not valid: {context['error']}"
    return f"is not valid: {fault['msg'][0].lower()}{fault['msg'][1:]}"


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
