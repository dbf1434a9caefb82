"""Class labels: by index, by name, or by one of the names in a label such as "tench, Tinca tinca"."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from cynosure.contract import ModelCard
from cynosure.errors import InvalidRequest, UnknownLabel, UnsupportedField

_MAX_DIGITS = 9


def label_index(label: int | str, card: ModelCard) -> int:
    """The class index of a label; the case of names does not matter.

    Raises:
        UnknownLabel: the model has no such class.
        InvalidRequest: several classes have the name.
        UnsupportedField: the model has no classes.
    """
    if not card.labels:
        raise UnsupportedField("class_label", f"'{card.name}' has no classes.")
    indices = _indices(label, card)
    if not indices:
        raise UnknownLabel(label, {card.name: card.labels})
    if len(indices) > 1:
        named = "; ".join(f"{index} ({card.labels[index]})" for index in indices)
        raise InvalidRequest(
            f"'{label}' names several classes of '{card.name}': {named}. Give the index.", field="class_label"
        )
    return indices[0]


def has_label(label: int | str, card: ModelCard) -> bool:
    """Whether at least one of the model's classes has this label."""
    return bool(_indices(label, card))


def _indices(label: int | str, card: ModelCard) -> tuple[int, ...]:
    if isinstance(label, int):
        return (label,) if 0 <= label < len(card.labels) else ()
    by_name = _indices_by_name(card.labels).get(_plain(label), ())
    if not by_name and (digits := label.strip()).isdecimal() and len(digits) <= _MAX_DIGITS:
        return _indices(int(digits), card)
    return by_name


def _plain(name: str) -> str:
    return ", ".join(part.strip() for part in name.casefold().split(","))


@functools.lru_cache(maxsize=64)
def _indices_by_name(labels: tuple[str, ...]) -> Mapping[str, tuple[int, ...]]:
    """The classes that each name stands for: every whole label, and every part of it between commas."""
    indices: dict[str, tuple[int, ...]] = {}
    for index, label in enumerate(labels):
        for name in {_plain(part) for part in (label, *label.split(","))} - {""}:
            indices[name] = (*indices.get(name, ()), index)
    return indices
