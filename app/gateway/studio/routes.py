"""GET /, the studio or what is here as JSON; GET /studio/…, the studio's files."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles

from app.gateway.addresses import AddressDep
from app.gateway.formats import Accept, best
from app.gateway.state import StateDep
from cynosure import __version__

router = APIRouter(include_in_schema=False)

with as_file(files(__package__) / "static") as _folder:
    _FOLDER = _folder  # the wheel lies unpacked
_HTML, _JSON = "text/html", "application/json"
_LINKS = {
    "studio": "/",
    "docs": "/docs",
    "openapi": "/openapi.json",
    "models": "/models",
    "generate": "/generate",
    "health": "/healthz",
    "ready": "/readyz",
    "status": "/status",
}
_HEADERS = {
    "Cache-Control": "no-cache",  # kept, but asked for again: after an upgrade its modules must be of one version
    "Vary": "Accept",
}


def _policy(pictures: str | None) -> str:
    """The studio's content security policy; `pictures` is the origin that it is redirected to for them, if any."""
    own = f"'self' {pictures}" if pictures else "'self'"
    return (
        f"default-src 'self'; img-src {own} blob: data:; connect-src {own}; object-src 'none'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )


class _Files(StaticFiles):
    """The studio's files, which browsers keep and ask for again by entity tag."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        answer = super().file_response(*args, **kwargs)
        answer.headers["Cache-Control"] = "no-cache"
        return answer


studio_files = GZipMiddleware(_Files(directory=_FOLDER))
"""The files, compressed on their way: a third of their size, and a phone may have loaded none yet."""


@router.get("/")
async def root(state: StateDep, address: AddressDep, accept: Accept = None) -> Response:
    """The studio for browsers; for `Accept: application/json` and clients without preference, name, version, links."""
    if best(accept, [_JSON, _HTML]) == _HTML:
        policy = _policy(await state["store"].jobs.places.origin())
        return FileResponse(_FOLDER / "index.html", headers=_HEADERS | {"Content-Security-Policy": policy})
    links = {name: address.root + path for name, path in _LINKS.items()}
    return JSONResponse({"name": "Cynosure", "version": __version__, "links": links}, headers={"Vary": "Accept"})


@router.get("/favicon.ico")
async def favicon() -> FileResponse:
    """The icon, for browsers that ask without being told of one: `/docs` and pictures have none of their own."""
    return FileResponse(_FOLDER / "favicon.svg", headers={"Cache-Control": "public, max-age=86400"})
