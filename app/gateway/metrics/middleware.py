"""Counting requests."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.gateway.metrics.meters import GatewayMetrics

HUNG_UP = 499
"""The status, as nginx counts it, of a client that did not wait for its answer."""


class Measured:
    """Counts requests by route, method and status, and times them until the answer begins.

    The routers note the route in the scope, so no middleware inside this one may pass on a copy of it.
    """

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked_at = time.perf_counter()
        status, seconds = HUNG_UP, 0.0

        async def noting(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status, seconds = message["status"], time.perf_counter() - asked_at
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except Exception:
            status = 500 if status == HUNG_UP else status
            raise
        finally:
            route = scope.get("route")
            method = scope["method"] if scope["method"] in getattr(route, "methods", ()) else ""  # 405: any word
            template = getattr(route, "path_format", "")
            self._metrics.request_answered(method, template, status, seconds or time.perf_counter() - asked_at)
