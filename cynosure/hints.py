"""What was meant by a name that isn't known, as phrases such as "did you mean 'steps'?"."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from cynosure.synonyms import field_for, sampler_for

MAX_SHOWN = 100
"""Longest text of a client that an error repeats in full, and that is compared with known names."""
MAX_NAMED = 20
"""Most faults, or known names, that an error lists."""


def shown(name: str) -> str:
    """The name as errors repeat it."""
    return name if len(name) <= MAX_SHOWN else f"{name[:MAX_SHOWN]}…"


def listed(names: Sequence[str]) -> str:
    """The first of many names."""
    return (", ".join(names[:MAX_NAMED]) + (", …" if len(names) > MAX_NAMED else "")) or "none"


def nearest(name: str, known: Sequence[str]) -> str:
    """The known name that is spelt most like this one; nothing if none is."""
    if len(name) > MAX_SHOWN:  # the comparison takes the product of the lengths
        return ""
    by_lower = {one.lower(): one for one in reversed(known)}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"did you mean '{by_lower[close[0]]}'?" if close else ""


def field_hint(field: str, known: Sequence[str]) -> str:
    """What a field, `outer.inner`, is called here."""
    name = field.rpartition(".")[2]
    ours = field_for(name)
    if ours == "":
        return ""
    if ours is not None and all(one in known for one in re.split(" and | or ", ours)):
        return f"here it is {ours}"
    return nearest(name, known)


def sampler_hint(name: str, known: Sequence[str]) -> str:
    """What a sampler is called here."""
    ours = sampler_for(name)
    return f"here it is {ours}" if ours and ours.partition(" ")[0] in known else nearest(name, known)


def sentence(hint: str) -> str:
    """The phrase as a sentence with a space behind it."""
    return f"{hint[0].upper()}{hint[1:]}{'' if hint.endswith('?') else '.'} " if hint else ""


def unknown_fields(fields: Sequence[str], known: Sequence[str], hints: Mapping[str, str]) -> str:
    """The beginning of a refusal of fields that there are not; `hints` say of some what was meant."""
    meant = {field: hints.get(field) or field_hint(field, known) for field in fields[:MAX_NAMED]}
    if len(fields) == 1:
        [(field, hint)] = meant.items()
        return f"No field '{shown(field)}'. {sentence(hint)}"
    named = [f"'{shown(field)}'" + (f" ({hint})" if hint else "") for field, hint in meant.items()]
    more = f" and {len(fields) - MAX_NAMED} more" if len(fields) > MAX_NAMED else ""
    return f"No fields {', '.join(named)}{more}. "


def unknown_label(label: int | str, labels: Mapping[str, Sequence[str]], *, names_models: bool) -> str:
    """What is wrong with a label that is none of `labels`, which are listed by model."""
    several = len(labels) > 1
    if isinstance(label, int):
        ranges = [f"'{name}' has " + (f"0 to {len(known) - 1}" if known else "none") for name, known in labels.items()]
        return f"Class {label} is out of range: {', '.join(ranges)}."
    names = [name for known in labels.values() for one in known for name in (one, *one.split(", "))]
    lists = [(f"'{name}' has: " if several else "Known: ") + listed(known) for name, known in labels.items()]
    where = f" in {' or '.join(map(repr, labels))}" if names_models else ""
    return f"No class '{shown(label)}'{where}. {sentence(nearest(label, names))}{'; '.join(lists)}."
