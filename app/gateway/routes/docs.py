"""GET /docs: the API's interactive documentation, from files of this installation alone."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import as_file, files
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

router = APIRouter(include_in_schema=False)

SwaggerFile = Literal["swagger-ui-bundle.js", "swagger-ui.css"]
with as_file(files("fastapi_offline") / "static") as _folder:
    SWAGGER_FOLDER = _folder  # Swagger UI 5; the wheel lies unpacked


@router.get("/docs")
async def page(request: Request) -> HTMLResponse:
    """Swagger UI, with a policy that allows only its inline script and its own files."""
    html = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Cynosure",
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
    scripts = re.findall(r"<script>(.*?)</script>", bytes(html.body).decode(), flags=re.DOTALL)
    own = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts)
    html.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src 'self' {own}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; "  # the pictures that it is answered are blobs
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    return html


@router.get("/docs/{name}")
async def file(name: SwaggerFile) -> FileResponse:
    """A file of Swagger UI."""
    return FileResponse(SWAGGER_FOLDER / name, headers={"Cache-Control": "public, max-age=86400"})
