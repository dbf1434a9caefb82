"""What came of one request of a batch that a client keeps itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from cynosure.contract import GenerateRequest


@dataclass(frozen=True)
class Drawn:
    """One request, with its pictures or with why there are none.

    Attributes:
        index: position among the requests.
        request: as it was given.
        pictures: all of it, where it succeeded.
        error: a `CynosureError`, or a `pydantic.ValidationError` where the request was none.
    """

    index: int
    request: GenerateRequest | Mapping[str, Any]
    pictures: list[Image.Image] = field(default_factory=list)
    error: Exception | None = None
