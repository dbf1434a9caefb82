"""Errors in OpenAI's format."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

from app.gateway.errors.safe_json import SafeJSONResponse

_KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(status: int, code: str, detail: str, param: str | None) -> dict[str, Any]:
    """An error in OpenAI's format."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": detail, "type": kind, "param": param, "code": code}}


def error_response(status: int, code: str, detail: str, param: str | None, headers: dict[str, str]) -> JSONResponse:
    """The answer to a refused or failed request, with our status, except that OpenAI's clients expect 400 for 422."""
    if code == "unknown_model":
        status, code = 404, "model_not_found"
    status = 400 if status == 422 else status
    return SafeJSONResponse(error_body(status, code, detail, param), status, headers=headers)
