"""Query parameters that a route doesn't have: a misspelt filter must not look like no filter."""

from __future__ import annotations

from fastapi import Request
from fastapi.routing import APIRoute

from cynosure.errors import UnknownField


async def refuse_unknown(request: Request) -> None:
    """A dependency of every route; what a route has is what the OpenAPI document says.

    Raises:
        UnknownField: naming the parameter, and those that there are.
    """
    if not request.query_params:
        return
    route: APIRoute = request.scope["route"]
    operation = request.app.openapi()["paths"][route.path_format][request.method.lower()]
    known = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
    for name in request.query_params:
        if name not in known:
            raise UnknownField(name, sorted(known) or ["none"])
