"""Every error as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import logging
import re
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

from app.gateway.addresses import address_of
from app.gateway.errors.openai import error_response
from app.gateway.errors.safe_json import SafeJSONResponse
from app.gateway.headers import secure
from cynosure.contract import Problem
from cynosure.errors import (
    ENCODINGS,
    CynosureError,
    JobFailed,
    MalformedBody,
    Unauthenticated,
    UnsupportedEncoding,
)
from cynosure.refusals import Location, Place, place_of, refusal_of
from jobs.logs import kept

CLIENTS_PREFIX = "/v1/"
"""Below it are the routes that OpenAI's and Replicate's clients use."""
_REPLICATES = re.compile(rf"{CLIENTS_PREFIX}(predictions|models/[^/]+/[^/]+|webhooks/)")
A1111_PREFIX = "/sdapi/v1/"
REQUEST_ID = "X-Request-Id"
log = logging.getLogger(__name__)
_TITLES = {404: ("not_found", "Not found"), 405: ("method_not_allowed", "Method not allowed")}


def is_openais(path: str) -> bool:
    """Whether errors on this path have OpenAI's format."""
    return path.startswith(CLIENTS_PREFIX) and not _REPLICATES.match(path)


def problem_response(
    *,
    scope: Scope,
    status: int,
    code: str,
    title: str,
    detail: str,
    headers: dict[str, str] | None = None,
    **extra: Any,
) -> JSONResponse:
    """An error answer to the request of `scope`, on some paths in OpenAI's format."""
    if is_openais(scope["path"]):
        return error_response(status, code, detail, extra.get("field"), headers or {})
    kind = f"{address_of(scope).root}/docs/errors#{code}"
    request_id = kept("request_id") or None
    problem = Problem(type=kind, title=title, status=status, detail=detail, code=code, request_id=request_id, **extra)
    return SafeJSONResponse(
        problem.model_dump(exclude_none=True), status, headers=headers, media_type="application/problem+json"
    )


def _headers_of(error: CynosureError) -> dict[str, str]:
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    if isinstance(error, UnsupportedEncoding):
        headers["Accept-Encoding"] = ", ".join(ENCODINGS)
    return headers | ({"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthenticated) else {})


def from_error(error: CynosureError, scope: Scope) -> JSONResponse:
    """The answer to a `CynosureError` of the request of `scope`."""
    return problem_response(
        scope=scope,
        status=error.status,
        code=error.code,
        title=error.title,
        detail=error.detail,
        field=error.field,
        line=error.line,
        errors=[{"field": field, "detail": detail} for field, detail in error.faults] if error.faults[1:] else None,
        headers=_headers_of(error),
        job_code=error.job_code if isinstance(error, JobFailed) else None,
    )


def _place_of(location: Location, request: Request) -> Place:
    """The place of a fault: in the body's model, or a parameter."""
    source, *inside = location
    body = getattr(request.scope.get("route"), "body_field", None)
    if source == "body" and body is not None:
        return place_of(body.field_info.annotation, inside)
    return Place(str(inside[0]) if inside else str(source))


def from_validation(error: RequestValidationError, request: Request) -> JSONResponse:
    """A 422 that names all faults; a 400 if the body is not a JSON object."""
    faults, scope = error.errors(), request.scope
    find = partial(_place_of, request=request)
    if find(faults[0]["loc"]).is_body:
        return from_error(MalformedBody("The body must be a JSON object with Content-Type application/json."), scope)
    return from_error(refusal_of(faults, find), scope)


def install(app: FastAPI) -> None:
    """Register the handlers."""

    @app.exception_handler(CynosureError)
    async def known(request: Request, error: CynosureError) -> JSONResponse:
        return from_error(error, request.scope)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return from_validation(error, request)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, CynosureError):  # a limit was exceeded while FastAPI read the body
            return from_error(error.__cause__, request.scope)
        if error.status_code == MalformedBody.status:  # FastAPI and Starlette use it for bodies they can't parse
            reason = error.__cause__ if isinstance(error.__cause__, ValueError) else error.detail
            return from_error(MalformedBody(f"The body can't be read: {str(reason).rstrip('.')}."), request.scope)
        code, title = _TITLES.get(error.status_code, ("http_error", "Request refused"))
        headers = dict(error.headers or {})
        return problem_response(
            scope=request.scope,
            status=error.status_code,
            code=code,
            title=title,
            detail=f"{request.method} {request.scope['path']}: {title}.",
            headers=headers,
        )

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.exception("unexpected error in %s %s", request.method, request.url.path, exc_info=error)
        answer = problem_response(
            scope=request.scope,
            status=500,
            code="internal",
            title="Internal error",
            detail=f"The server failed unexpectedly; its log has the details of request {kept('request_id')}.",
            headers={REQUEST_ID: kept("request_id")},
        )
        secure(answer.headers)  # this handler runs outside all middleware
        return answer
