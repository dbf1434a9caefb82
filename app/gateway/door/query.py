"""Refusing unknown query parameters: a misspelt filter must not be silently ignored."""

from __future__ import annotations

from fastapi import Request
from fastapi.routing import APIRoute

from cynosure.errors import UnknownField


async def refuse_unknown(request: Request) -> None:
    """A dependency of every route; the known parameters are those in the OpenAPI document.

    Raises:
        UnknownField: names the parameters and the known ones.
    """
    if not request.query_params:
        return
    route: APIRoute = request.scope["route"]
    operation = request.app.openapi()["paths"][route.path_format][request.method.lower()]
    known = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
    if unknown := [name for name in request.query_params if name not in known]:
        raise UnknownField(unknown, sorted(known) or ["none"])
