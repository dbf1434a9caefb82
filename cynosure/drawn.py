"""The result of one request of a client-side batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from cynosure.contract import GenerateRequest


@dataclass(frozen=True)
class Drawn:
    """One request, with its pictures or the error that prevented them.

    Attributes:
        index: position among the requests.
        request: the request as it was passed in.
        pictures: all its pictures, if it succeeded.
        error: a `CynosureError`; `InvalidRequest` if the request was not valid.
    """

    index: int
    request: GenerateRequest | Mapping[str, Any]
    pictures: list[Image.Image] = field(default_factory=list)
    error: Exception | None = None
