"""Pydantic's validation errors as Cynosure's own, in servers and clients alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, get_args

from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.fields import FieldInfo

from cynosure.contract import GenerateRequest
from cynosure.errors import InvalidRequest, UnknownField

Model = TypeVar("Model", bound=BaseModel)


def parsed(model: type[Model], fields: Any) -> Model:
    """The value of a model with these fields.

    Raises:
        InvalidRequest: naming the first field at fault, with the nearest known name if there is no such field.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise refusal_of(error, model) from error


def place_of(model: type[BaseModel], location: Sequence[int | str]) -> tuple[str, list[str]]:
    """The field at pydantic's `location` within `model`, as `outer.inner`, and all fields allowed in its place.

    If the location goes on inside a field (to an element, or a member of a union), that field is meant.
    """
    names: list[str] = []
    while True:
        fields = {spelling: field for name, field in model.model_fields.items() for spelling in _spellings(name, field)}
        part = str(location[len(names)])
        names.append(part)
        inner = _model_in(fields[part].annotation) if part in fields else None
        if inner is None or len(names) == len(location):
            return ".".join(names), sorted(model.model_fields)
        model = inner


def refusal_of(error: ValidationError, model: type[BaseModel]) -> InvalidRequest:
    """The first fault in a value that should be a `model`, with its field."""
    fault = error.errors()[0]
    if not fault["loc"]:
        return InvalidRequest(f"body: {fault['msg']}.", field="body")
    field, known = place_of(model, fault["loc"])
    if fault["type"] == "extra_forbidden":
        return unknown_field(field, known)
    return InvalidRequest(f"{field}: {fault['msg']}.", field=field)


def unknown_field(field: str, known: Sequence[str]) -> InvalidRequest:
    """The refusal of a field that a model does not have, or has under another name that was given too."""
    name = field.rpartition(".")[2]
    for ours, described in GenerateRequest.model_fields.items():
        spellings = _spellings(ours, described)
        if ours in known and name in spellings:
            return InvalidRequest(f"Give {' or '.join(sorted(spellings))}, and only one of them.", field=field)
    return UnknownField(field, known)


def _spellings(name: str, field: FieldInfo) -> set[str]:
    choices = field.validation_alias
    aliases = choices.choices if isinstance(choices, AliasChoices) else [choices or name]
    return {name, *(alias for alias in aliases if isinstance(alias, str))}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, directly or as one member of a union; `None` for containers such as arrays."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(
        (choice for choice in get_args(annotation) if isinstance(choice, type) and issubclass(choice, BaseModel)), None
    )
