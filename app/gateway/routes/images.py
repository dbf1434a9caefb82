"""GET /jobs/{id}/images/{i}.png and /jobs/{id}/sheet.png."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated

from fastapi import APIRouter, Header, Response

from app.gateway.state import StateDep
from cynosure.contract import Problem

router = APIRouter(prefix="/jobs", tags=["jobs"], responses={404: {"model": Problem}, 410: {"model": Problem}})


def _range_of(header: str | None, length: int) -> tuple[int, int] | None:
    """First and last byte of a single `bytes=` range (RFC 9110, 14.1.2), or `None` for the whole."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if found is None or found.group(0) == "bytes=-":
        return None
    first, last = found.groups()
    if not first:
        return max(0, length - int(last)), length - 1
    return int(first), min(int(last) if last else length - 1, length - 1)


@router.get("/{job_id}/images/{index}.png", summary="A picture", response_class=Response)
async def get_image(
    job_id: str,
    index: int,
    state: StateDep,
    if_none_match: Annotated[str | None, Header()] = None,
    range: Annotated[str | None, Header()] = None,
) -> Response:
    """PNG bytes. They never change: caches may keep them."""
    return _picture(await state["store"].image(job_id, index), if_none_match, range)


@router.get("/{job_id}/sheet.png", summary="A sweep's contact sheet", response_class=Response)
async def get_sheet(
    job_id: str,
    state: StateDep,
    if_none_match: Annotated[str | None, Header()] = None,
    range: Annotated[str | None, Header()] = None,
) -> Response:
    """All pictures of a sweep on one sheet: a row for each label or prompt and seed, a column for each scale."""
    return _picture(await state["store"].sheet(job_id), if_none_match, range)


def _picture(png: bytes, if_none_match: str | None, range: str | None) -> Response:
    tag = f'"{hashlib.sha256(png).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "private, max-age=86400, immutable", "Accept-Ranges": "bytes"}
    if if_none_match in (tag, "*"):
        return Response(status_code=304, headers=headers)
    part = _range_of(range, len(png))
    if part is None:
        return Response(png, media_type="image/png", headers=headers)
    first, last = part
    if first > last:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{len(png)}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{len(png)}"
    return Response(png[first : last + 1], 206, media_type="image/png", headers=headers)
