"""Pydantic's validation errors as Cynosure's own, in servers and clients alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from cynosure.contract.names import spellings
from cynosure.errors import InvalidRequest, ModelNotFound, UnknownField, WorkerNotFound
from cynosure.hints import MAX_NAMED, MAX_SHOWN, nearest, sentence, shown
from cynosure.requirements import requirement

Model = TypeVar("Model", bound=BaseModel)
Location = Sequence[int | str]


@dataclass(frozen=True)
class Place:
    """Where a fault is.

    Attributes:
        field: the field at fault, as `outer.inner`; "body" for the whole body.
        within: the element of it, such as "[1]", if only that is at fault.
        model: the model that has, or lacks, the field; `None` for a parameter or the whole body.
        name: its name in that model.
    """

    field: str
    within: str = ""
    model: type[BaseModel] | None = None
    name: str = ""

    @property
    def info(self) -> FieldInfo | None:
        return None if self.model is None else _fields_of(self.model).get(self.name)

    @property
    def is_body(self) -> bool:
        return self.model is None and self.field == "body"

    @property
    def shown(self) -> str:
        return f"{self.field}{self.within}"[:MAX_SHOWN]


def parsed(model: type[Model], fields: Any) -> Model:
    """The value of a model with these fields.

    Raises:
        InvalidRequest: names the fields at fault, with the nearest known names for those that don't exist.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise refusal_of(error.errors(), partial(place_of, model)) from error


def place_of(model: type[BaseModel], location: Location) -> Place:
    """The place at pydantic's `location` within `model`."""
    if not location:
        return Place("body")
    names: list[str] = []
    while True:
        names.append(name := str(location[len(names)]))
        field = _fields_of(model).get(name)
        inner = None if field is None else _model_in(field.annotation)
        rest = location[len(names) :]
        if inner is not None and rest and isinstance(rest[0], int):  # one of an array of models
            names.append(str(rest[0]))
        if inner is None or len(names) == len(location):
            return Place(".".join(names), _within(field, location[len(names) :]), model, name)
        model = inner


def refusal_of(faults: Sequence[Mapping[str, Any]], find: Callable[[Location], Place]) -> InvalidRequest:
    """The refusal of a value, with all of pydantic's faults in it; `find` gives the place of a fault's location."""
    unknown: dict[type[BaseModel] | None, list[Place]] = {}
    wrong: dict[Place, list[Mapping[str, Any]]] = {}
    for fault in faults:
        place = find(fault["loc"])
        if fault["type"] == "extra_forbidden" and place.info is None:
            unknown.setdefault(place.model, []).append(place)
        else:
            wrong.setdefault(place, []).append(fault)
    refusals = [_of_value(place, found) for place, found in list(wrong.items())[:MAX_NAMED]]
    refusals += [_of_names(model, places) for model, places in unknown.items()]
    first = refusals[0]
    first.detail = " ".join(one.detail for one in refusals)
    first.faults = tuple(fault for one in refusals for fault in one.faults)
    return first


def _of_value(place: Place, faults: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    if faults[0]["type"] == "extra_forbidden" and place.info is not None:  # the value of its other name was taken
        detail = f"Give {' or '.join(sorted(spellings(place.name, place.info)))}, and only one of them."
    elif place.is_body:
        detail = "The body must be a JSON object."
    else:
        detail = f"{place.shown} {requirement(faults, place.info)}."
    refusal = InvalidRequest(detail, field=place.field)
    refusal.faults = ((place.field, detail),)
    return refusal


def _of_names(model: type[BaseModel] | None, places: Sequence[Place]) -> UnknownField:
    fields = {} if model is None else _fields_of(model)
    inner = {name: _fields_of(held) for name, field in fields.items() if (held := _model_in(field.annotation))}
    hints = {
        place.field: f"it belongs in {outer}"
        for place in places[:MAX_NAMED]
        for outer, known in inner.items()
        if place.name in known and f"{place.name}s" not in fields  # a sweep's axis
    }
    refusal = UnknownField([place.field for place in places], sorted(fields), hints)
    refusal.faults = tuple((place.shown, "There is no such field.") for place in places[:MAX_NAMED])
    return refusal


@cache
def _fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {spelling: field for name, field in model.model_fields.items() for spelling in spellings(name, field)}


def _within(field: FieldInfo | None, location: Location) -> str:
    """The rest of a location: elements of arrays and keys of objects, without pydantic's names of union members."""
    if field is not None and get_origin(field.annotation) is dict and location:
        return f"['{str(location[0])[:MAX_SHOWN]}']"
    return "".join(f"[{part}]" for part in location if isinstance(part, int))


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, directly, as one member of a union or in each entry of a list; else `None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(
        (choice for choice in get_args(annotation) if isinstance(choice, type) and issubclass(choice, BaseModel)), None
    )


def no_such_model(name: str, known: Iterable[str]) -> ModelNotFound:
    """The error for the name of a model in an address."""
    names = list(known)
    hint = sentence(nearest(name, names))
    return ModelNotFound(f"No worker serves a model '{shown(name)}'. {hint}Models: {', '.join(names) or 'none yet'}.")


def no_such_worker(name: str, known: Iterable[str]) -> WorkerNotFound:
    """The error for the name of a worker in an address."""
    names = ", ".join(list(known)[:MAX_NAMED]) or "none"
    return WorkerNotFound(f"There is no worker '{shown(name)}'. Workers: {names}.")
