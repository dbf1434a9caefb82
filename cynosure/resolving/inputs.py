"""Detaching input pictures from requests: stored apart, they are read only by the workers that draw from them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from cynosure.contract import INPUT_FIELDS, INPUT_LISTS, InputPicture, ResolvedRequest
from cynosure.errors import InvalidRequest
from cynosure.pictures import check_picture, content_of


def has_pictures(request: object) -> bool:
    """Whether a request holds a picture, so that checking it is slow."""
    fields = (*INPUT_FIELDS, *INPUT_LISTS, "from_image")
    return any(getattr(request, field, None) not in (None, ()) for field in fields)


def detached(request: ResolvedRequest) -> tuple[ResolvedRequest, dict[str, str]]:
    """Split a request into one with digests in place of its pictures, and the pictures by field, as they were sent.

    Slow for pictures of megabytes: about 0.1 s.

    Raises:
        InvalidRequest: one is not a picture, or too large, by its header.
    """
    pictures = _pictures_of(request)
    if not pictures:
        return request, {}
    for field, picture in pictures.items():
        check_picture(picture, field)
    inputs = request.inputs | {field: _input_picture(picture) for field, picture in pictures.items()}
    without = _having(request, dict.fromkeys(pictures))
    return without.model_copy(update={"inputs": inputs}), pictures


def attached(request: ResolvedRequest, pictures: Mapping[str, str]) -> ResolvedRequest:
    """Put the pictures back into a detached request.

    Raises:
        InvalidRequest: one of them is missing.
    """
    for field in request.inputs:
        if field not in pictures:
            raise InvalidRequest(f"The picture in {field} is no longer kept: send it again.", field=field)
    having = _having(request, {field: pictures[field] for field in request.inputs})
    return having.model_copy(update={"inputs": {}})


def _in_list(field: str, number: int) -> str:
    """The field of the picture of an entry of a list."""
    return f"{field}.{number}.image"


def _pictures_of(request: ResolvedRequest) -> dict[str, str]:
    """The request's pictures by field."""
    fields = {field: getattr(request, field) for field in INPUT_FIELDS}
    for field in INPUT_LISTS:
        fields |= {_in_list(field, number): entry.image for number, entry in enumerate(getattr(request, field))}
    return {field: picture for field, picture in fields.items() if picture is not None}


def _having(request: ResolvedRequest, pictures: Mapping[str, str | None]) -> ResolvedRequest:
    """The request with other pictures in these fields."""
    changed: dict[str, Any] = {field: picture for field, picture in pictures.items() if field in INPUT_FIELDS}
    for field in INPUT_LISTS:
        changed[field] = tuple(
            entry.model_copy(update={"image": pictures.get(_in_list(field, number), entry.image)})
            for number, entry in enumerate(getattr(request, field))
        )
    return request.model_copy(update=changed)


def _input_picture(encoded: str) -> InputPicture:
    content = content_of(encoded)
    return InputPicture(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
