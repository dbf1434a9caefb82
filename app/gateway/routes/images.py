"""GET /jobs/{id}/images/{i}.png (.jpeg, .webp) and /jobs/{id}/sheet.png."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response

from app.gateway.door.auth import Reader
from app.gateway.formats import in_format
from app.gateway.state import StateDep
from cynosure.contract import MAX_SWEEP_CELLS, OutputFormat, Problem

router = APIRouter(prefix="/jobs", tags=["jobs"], responses={410: {"model": Problem}})


def _range_of(header: str | None, length: int) -> tuple[int, int] | None:
    """First and last byte of a single `bytes=` range (RFC 9110, 14.1.2), or `None` for the whole."""
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header or "")
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        return max(0, length - int(last)), length - 1
    return int(first), min(int(last) if last else length - 1, length - 1)


@router.get(
    "/{job_id}/images/{index}.{extension}",
    summary="Get a picture",
    response_class=Response,
    responses={200: {"content": {format.media_type: {} for format in OutputFormat}}, 206: {}, 304: {}, 416: {}},
)
async def get_image(
    job_id: str,
    index: Annotated[int, Path(ge=0, le=MAX_SWEEP_CELLS)],
    extension: OutputFormat,
    state: StateDep,
    caller: Reader,
    quality: Annotated[
        int | None,
        Query(ge=0, le=100, description="Quality of JPEG, or of lossy WebP. Default: JPEG 95, WebP lossless."),
    ] = None,
    if_none_match: Annotated[str | None, Header()] = None,
    if_range: Annotated[str | None, Header()] = None,
    range: Annotated[str | None, Header()] = None,
) -> Response:
    """The picture as PNG, JPEG or WebP, with its request in it. The bytes never change: caches may keep them."""
    picture = await in_format(await state["store"].jobs.image(job_id, index, caller.sees), extension, quality)
    return _picture(picture, extension.media_type, if_none_match, if_range, range)


@router.get("/{job_id}/sheet.png", summary="Get a sweep's contact sheet", response_class=Response)
async def get_sheet(
    job_id: str,
    state: StateDep,
    caller: Reader,
    if_none_match: Annotated[str | None, Header()] = None,
    if_range: Annotated[str | None, Header()] = None,
    range: Annotated[str | None, Header()] = None,
) -> Response:
    """All pictures of a sweep on one sheet: one row per label or prompt and seed, one column per scale."""
    return _picture(
        await state["store"].jobs.sheet(job_id, caller.sees),
        OutputFormat.PNG.media_type,
        if_none_match,
        if_range,
        range,
    )


def _matches(if_none_match: str | None, tag: str) -> bool:
    """Whether a list of entity tags has this one, by weak comparison (RFC 9110, 8.8.3.2 and 13.1.2)."""
    tags = [one.strip().removeprefix("W/") for one in (if_none_match or "").split(",")]
    return tag in tags or tags == ["*"]


def _picture(
    content: bytes, media_type: str, if_none_match: str | None, if_range: str | None, range: str | None
) -> Response:
    tag = f'"{hashlib.sha256(content).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "private, max-age=86400, immutable", "Accept-Ranges": "bytes"}
    if _matches(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    # A range is of the picture that the client has a part of: a date, or another tag, asks for all of it (13.1.5).
    part = _range_of(range, len(content)) if if_range in (None, tag) else None
    if part is None:
        return Response(content, media_type=media_type, headers=headers)
    first, last = part
    if first > last:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{len(content)}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
    return Response(content[first : last + 1], 206, media_type=media_type, headers=headers)
