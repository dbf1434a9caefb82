"""Polls of jobs, past FastAPI."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.gateway.addresses import address_of
from app.gateway.door.auth import caller_of
from app.gateway.errors.problems import from_error
from app.gateway.routes import jobs
from cynosure.errors import CynosureError
from jobs.accounts.api_keys import Scope as KeyScope

_PATH = re.compile(r"/jobs/([^/]+)")
[_ROUTE] = [route for route in jobs.router.routes if getattr(route, "endpoint", None) is jobs.get_job]


class Polls:
    """Answers `GET /jobs/{id}`, which clients ask more often than all else, by its route's function itself.

    FastAPI's routing and dependencies would take as long as all the rest. It does the same for requests that are not
    plain polls, such as those with a query string.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_plain = scope["type"] == "http" and scope["method"] == "GET" and not scope["query_string"]
        match = _PATH.fullmatch(scope["path"]) if is_plain else None
        if match is None:
            await self.app(scope, receive, send)
            return
        scope["route"] = _ROUTE  # for what counts requests
        try:
            caller, prefer = caller_of(scope, KeyScope.READ), Headers(scope=scope).get("prefer")
            answer = await jobs.get_job(match.group(1), scope["state"], caller, address_of(scope), prefer)
        except CynosureError as error:
            answer = from_error(error, scope)
        await answer(scope, receive, send)
