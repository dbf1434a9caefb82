"""GET /docs, /docs/errors and /openapi.json: the documentation, from files of this installation alone."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import as_file, files
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse

from app.gateway.addresses import AddressDep
from app.gateway.errors.page import STYLE, errors_page
from app.gateway.state import StateDep

router = APIRouter(include_in_schema=False)

SwaggerFile = Literal["swagger-ui-bundle.js", "swagger-ui.css"]
with as_file(files("fastapi_offline") / "static") as _folder:
    SWAGGER_FOLDER = _folder  # Swagger UI 5; the wheel lies unpacked


def _hash_source(text: str) -> str:
    """What a content security policy calls an inline script or style by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_PAGE_POLICY = (
    f"default-src 'none'; style-src {_hash_source(STYLE)}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


@router.get("/docs")
async def page(request: Request, state: StateDep) -> HTMLResponse:
    """Swagger UI, with a policy that allows only its inline script and its own files."""
    html = get_swagger_ui_html(
        openapi_url="openapi.json",  # beside the page, whatever a proxy puts before its path
        title="Cynosure",
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="favicon.ico",
    )
    scripts = re.findall(r"<script>(.*?)</script>", bytes(html.body).decode(), flags=re.DOTALL)
    own = " ".join(_hash_source(text) for text in scripts)
    # Besides itself, where it is redirected to for pictures, if it is.
    connected = " ".join(filter(None, ("'self'", await state["store"].jobs.places.origin())))
    html.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src 'self' {own}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; "  # the pictures that it is answered are blobs
        f"connect-src {connected}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    return html


@router.get("/openapi.json")
async def openapi(request: Request, address: AddressDep) -> JSONResponse:
    """The OpenAPI document, with the public address if it is not the one that the document is read from."""
    servers = {"servers": [{"url": address.root}]} if address.root else {}
    return JSONResponse(request.app.openapi() | servers)


@router.get("/docs/errors")
async def errors() -> HTMLResponse:
    """Every error, at the anchor of its code: where the `type` of a problem leads."""
    return HTMLResponse(errors_page(), headers={"Content-Security-Policy": _PAGE_POLICY})


@router.get("/docs/{name}")
async def file(name: SwaggerFile) -> FileResponse:
    """A file of Swagger UI."""
    return FileResponse(SWAGGER_FOLDER / name, headers={"Cache-Control": "public, max-age=86400"})
