"""The OpenAPI document: FastAPI's, with every error answer in its actual format."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.gateway.errors.problems import is_openais
from cynosure.batches import BatchLine
from cynosure.errors import CynosureError, MalformedBody

_DESCRIPTIONS = {
    400: "Not well-formed",
    401: "No API key, or an invalid one",
    403: "The API key lacks the scope; or no key was sent, and the host or origin is not this machine's",
    404: "Not found, or owned by another API key",
    405: "Method not allowed",
    406: "No media type here that Accept takes",
    409: "Conflict with the present state",
    410: "No longer kept",
    413: "Too large",
    415: "Compressed in a way that is not taken; see Accept-Encoding",
    422: "Can't be served as it stands; `field` names what to change",
    429: "Too many requests or jobs; see Retry-After",
    500: "The job or the server failed",
    503: "No worker or store available; see Retry-After",
}
_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_OPENAI_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/OpenAIError"}}}
_OPENAI_SCHEMA: dict[str, Any] = {
    "title": "OpenAIError",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "code": {"type": "string"},
            },
        }
    },
}


def refusals_of(path: str, operation: dict[str, Any]) -> set[int]:
    """Statuses of all errors that a route may answer with, including those that it declares itself."""
    statuses = {int(status) for status in operation["responses"] if status.isdecimal() and int(status) >= 400}
    if "security" in operation:
        statuses |= {401, 403, 429, 500, 503}
    if "requestBody" in operation:
        statuses |= {MalformedBody.status, 409, 413, 415, 422}
    if "parameters" in operation:
        statuses |= {422}
    if "{" in path:
        statuses |= {404}
    if is_openais(path):
        statuses = (statuses - {422}) | {400, 404}
    return statuses


def install(app: FastAPI) -> None:
    """Make `/openapi.json` describe the error answers."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way to extend the document


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    for path, methods in document["paths"].items():
        content = _OPENAI_ERROR if is_openais(path) else _PROBLEM
        for operation in methods.values():
            answers = {status: answer for status, answer in operation["responses"].items() if status < "400"}
            for status in sorted(refusals_of(path, operation)):
                description = _DESCRIPTIONS.get(status, CynosureError.title)
                answers[str(status)] = {"description": description, "content": content}
            operation["responses"] = answers
    schemas = document["components"]["schemas"]
    schemas["OpenAIError"] = _OPENAI_SCHEMA
    for name, part in _batch_line(schemas).items():
        schemas.setdefault(name, part)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return document


def _batch_line(schemas: dict[str, Any]) -> dict[str, Any]:
    """The schema of a batch's lines, which no route takes as its body, and of their parts."""
    plain = BatchLine.model_json_schema()["$defs"]
    # FastAPI calls what differs between requests and answers -Input and -Output.
    names = {name: f"{name}-Input" if f"{name}-Input" in schemas else name for name in plain}
    ref_template = "#/components/schemas/{model}"
    text = json.dumps(BatchLine.model_json_schema(ref_template=ref_template))
    for name, ours in names.items():
        text = text.replace(f'"{ref_template.format(model=name)}"', f'"{ref_template.format(model=ours)}"')
    line = json.loads(text)
    parts = {names[name]: part for name, part in line.pop("$defs").items()}
    return {**parts, "BatchLine": line}
