"""Detaching input pictures from requests: stored apart, they are read only by the workers that draw from them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from cynosure.contract import INPUT_FIELDS, InputPicture, ResolvedRequest
from cynosure.errors import InvalidRequest
from cynosure.pictures import check_picture, content_of


def has_pictures(request: object) -> bool:
    """Whether a request holds a picture, so that checking it is slow."""
    return any(getattr(request, field, None) is not None for field in (*INPUT_FIELDS, "from_image"))


def detached(request: ResolvedRequest) -> tuple[ResolvedRequest, dict[str, str]]:
    """Split a request into one with digests in place of its pictures, and the pictures by field, as they were sent.

    Slow for pictures of megabytes: about 0.1 s.

    Raises:
        InvalidRequest: one is not a picture, or too large, by its header.
    """
    pictures = {field: picture for field in INPUT_FIELDS if (picture := getattr(request, field)) is not None}
    if not pictures:
        return request, {}
    for field, picture in pictures.items():
        check_picture(picture, field)
    inputs = request.inputs | {field: _input_picture(picture) for field, picture in pictures.items()}
    return request.model_copy(update={**dict.fromkeys(pictures), "inputs": inputs}), pictures


def attached(request: ResolvedRequest, pictures: Mapping[str, str]) -> ResolvedRequest:
    """Put the pictures back into a detached request.

    Raises:
        InvalidRequest: one of them is missing.
    """
    for field in request.inputs:
        if field not in pictures:
            raise InvalidRequest(f"The picture in {field} is no longer kept: send it again.", field=field)
    return request.model_copy(update={**{field: pictures[field] for field in request.inputs}, "inputs": {}})


def _input_picture(encoded: str) -> InputPicture:
    content = content_of(encoded)
    return InputPicture(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
