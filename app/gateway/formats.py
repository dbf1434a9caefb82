"""Picture formats: which one the client accepts, and conversion to it."""

from __future__ import annotations

import re

from fastapi.concurrency import run_in_threadpool

from cynosure.contract import OutputFormat
from cynosure.metadata import transcoded

_BY_MEDIA_TYPE = {format.media_type: format for format in OutputFormat}
_QUALITY = re.compile(r";\s*q\s*=\s*([01](?:\.\d{0,3})?)")


def wanted(accept: str | None, default: OutputFormat) -> OutputFormat | None:
    """The picture format that an `Accept` header (RFC 9110, 12.5.1) prefers; `None` if it prefers another type.

    The first of several with equal quality wins; `image/*` means `default`.
    """
    best: tuple[float, OutputFormat | None] = (0.0, None)
    for part in (accept or "").split(","):
        kind = part.partition(";")[0].strip().lower()
        match = _QUALITY.search(part)
        quality = float(match.group(1)) if match else 1.0
        if quality > best[0]:
            best = quality, default if kind == "image/*" else _BY_MEDIA_TYPE.get(kind)
    return best[1]


async def in_format(png: bytes, to: OutputFormat, quality: int | None = None) -> bytes:
    """Convert a PNG made by Cynosure to another format, in a thread."""
    return png if to is OutputFormat.PNG else await run_in_threadpool(transcoded, png, to, quality)
