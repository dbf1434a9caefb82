"""Content negotiation: which media type the client prefers; and conversion of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Header
from fastapi.concurrency import run_in_threadpool
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from cynosure.contract import OutputFormat
from cynosure.errors import NotAcceptable
from cynosure.metadata import transcoded

Accept = Annotated[str | None, Header(alias="accept", description="Media types that the client takes (RFC 9110).")]


def best(accept: str | None, offers: Sequence[str]) -> str:
    """The media type of `offers` that an `Accept` header (RFC 9110, 12.5.1) prefers.

    Each offer has the quality of the most specific range that it matches. Of offers with equal quality, a type that
    the header names comes before those that only a wildcard matches, then the one named first, then the first offer.

    Raises:
        NotAcceptable: the header accepts none of them.
    """
    if accept is None or accept == "*/*":
        return offers[0]
    # Without parameters such as charset: none of the offers has any.
    ranges = MIMEAccept(
        [(kind.partition(";")[0].strip(), quality) for kind, quality in parse_accept_header(accept, MIMEAccept)]
    )
    chosen = max(offers, key=lambda offer: (ranges.quality(offer), -ranges.find(offer)))
    if not ranges.quality(chosen):
        raise NotAcceptable(offers)
    return chosen


async def in_format(png: bytes, to: OutputFormat, quality: int | None = None) -> bytes:
    """Convert a PNG made by Cynosure to another format, in a thread."""
    return png if to is OutputFormat.PNG else await run_in_threadpool(transcoded, png, to, quality)
