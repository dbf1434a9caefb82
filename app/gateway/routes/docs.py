"""GET /docs: the API's interactive documentation."""

from __future__ import annotations

import base64
import hashlib
import re

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_SWAGGER = (
    "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5.29.0/"  # pinned, so that the content the policy allows can't change
)


@router.get("/docs")
async def page(request: Request) -> HTMLResponse:
    """Swagger UI, with a policy that allows only its inline script and Swagger's own."""
    html = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Cynosure",
        swagger_js_url=_SWAGGER + "swagger-ui-bundle.js",
        swagger_css_url=_SWAGGER + "swagger-ui.css",
        swagger_favicon_url="data:,",
    )
    scripts = re.findall(r"<script>(.*?)</script>", bytes(html.body).decode(), flags=re.DOTALL)
    own = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts)
    html.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src {own} {_SWAGGER}; style-src 'unsafe-inline' {_SWAGGER}; img-src 'self' data:; "
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    return html
