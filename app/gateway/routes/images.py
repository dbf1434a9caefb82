"""GET /jobs/{id}/images/{i}.png (.jpeg, .webp) and /jobs/{id}/sheet.png, POST /jobs/{id}/links."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from app.gateway.addresses import AddressDep
from app.gateway.door.auth import Reader
from app.gateway.door.links import signed
from app.gateway.formats import Accept, best, in_format
from app.gateway.shaping import image_paths, moment, sheet_path
from app.gateway.state import StateDep
from app.gateway.streams import is_head
from cynosure.contract import MAX_SWEEP_CELLS, OutputFormat, PictureLinks, Problem
from jobs.pictures.in_store import InlinePicture
from jobs.pictures.keeping import Picture

router = APIRouter(prefix="/jobs", tags=["jobs"], responses={410: {"model": Problem}})


def _documented(
    expires: Annotated[str | None, Query(description="Of a signed link: the end of its time.")] = None,
    signature: Annotated[str | None, Query(description="Of a signed link (POST /jobs/{id}/links).")] = None,
) -> None:
    """The parameters of signed links, which the door has checked."""


_LINKED = [Depends(_documented)]


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
    responses={
        200: {"content": {format.media_type: {} for format in OutputFormat}},
        206: {},
        302: {"description": "It is at a signed address, for a few minutes"},
        304: {},
        406: {"model": Problem},
        416: {},
    },
    dependencies=_LINKED,
)
async def get_image(
    request: Request,
    job_id: str,
    index: Annotated[int, Path(ge=0, le=MAX_SWEEP_CELLS)],
    extension: OutputFormat,
    state: StateDep,
    caller: Reader,
    quality: Annotated[
        int | None,
        Query(ge=0, le=100, description="Quality of JPEG, or of lossy WebP. Default: JPEG 95, WebP lossless."),
    ] = None,
    redirect: Annotated[
        bool, Query(description="false: the picture itself, also where clients are redirected to its storage.")
    ] = True,
    accept: Accept = None,
    if_none_match: Annotated[str | None, Header()] = None,
    if_range: Annotated[str | None, Header()] = None,
    range: Annotated[str | None, Header()] = None,
) -> Response:
    """The picture as PNG, JPEG or WebP, with its request in it. The bytes never change: caches may keep them."""
    best(accept, [extension.media_type])
    picture = await state["store"].jobs.picture(job_id, index, caller.sees)
    if not redirect or extension is not OutputFormat.PNG:
        picture = InlinePicture(await in_format(await picture.read(), extension, quality))
    return await _answer(picture, extension.media_type, request, if_none_match, if_range, range)


@router.get(
    "/{job_id}/sheet.png",
    summary="Get a sweep's contact sheet",
    response_class=Response,
    responses={302: {"description": "It is at a signed address, for a few minutes"}, 406: {"model": Problem}},
    dependencies=_LINKED,
)
async def get_sheet(
    request: Request,
    job_id: str,
    state: StateDep,
    caller: Reader,
    accept: Accept = None,
    if_none_match: Annotated[str | None, Header()] = None,
    if_range: Annotated[str | None, Header()] = None,
    range: Annotated[str | None, Header()] = None,
) -> Response:
    """All pictures of a sweep on one sheet: one row per label or prompt and seed, one column per scale."""
    media_type = best(accept, [OutputFormat.PNG.media_type])
    sheet = await state["store"].jobs.sheet(job_id, caller.sees)
    return await _answer(sheet, media_type, request, if_none_match, if_range, range)


@router.post("/{job_id}/links", summary="Get links to a job's pictures")
async def post_links(job_id: str, state: StateDep, caller: Reader, address: AddressDep) -> PictureLinks:
    """Addresses of the pictures that work without an API key for a while, such as in a web page's `<img>`.

    Whoever has one sees that picture and nothing else. The links end early if the API key is revoked.
    """
    record = await state["store"].jobs.get(job_id, caller.sees)
    sheet = sheet_path(record)
    expires, paths = await signed(state, record.owner, [*image_paths(record), *filter(None, [sheet])])
    urls = tuple(address.base + path for path in paths)
    return PictureLinks(
        expires_at=moment(1000 * expires),
        images=urls[: len(record.image_hashes)],
        sheet=urls[-1] if sheet else None,
    )


def _matches(if_none_match: str | None, tag: str) -> bool:
    """Whether a list of entity tags has this one, by weak comparison (RFC 9110, 8.8.3.2 and 13.1.2)."""
    tags = [one.strip().removeprefix("W/") for one in (if_none_match or "").split(",")]
    return tag in tags or tags == ["*"]


async def _answer(
    picture: Picture,
    media_type: str,
    request: Request,
    if_none_match: str | None,
    if_range: str | None,
    range: str | None,
) -> Response:
    """The picture, a part of it, or where it is."""
    tag, size = f'"{picture.sha256}"', picture.size
    headers = {"ETag": tag, "Cache-Control": "private, max-age=86400, immutable", "Accept-Ranges": "bytes"}
    if _matches(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    if is_head(request):  # a signed address is for GET alone, and there is nothing to read
        return Response(headers=headers | {"Content-Length": str(size)}, media_type=media_type)
    if (address := await picture.address()) is not None:
        return RedirectResponse(address, 302)  # a 307 is the router's own, and led to the public address
    # A range is of the picture that the client has a part of: a date, or another tag, asks for all of it (13.1.5).
    part = _range_of(range, size) if if_range in (None, tag) else None
    first, last = part or (0, size - 1)
    if first > last:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
    headers |= {"Content-Length": str(last + 1 - first)}
    headers |= {"Content-Range": f"bytes {first}-{last}/{size}"} if part else {}
    content, status = await picture.part(first, last), 206 if part else 200
    if isinstance(content, bytes):
        return Response(content, status, headers, media_type)
    return StreamingResponse(content, status, headers, media_type)
