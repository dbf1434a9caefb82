"""Security headers: they tell browsers not to run, sniff, embed or cache an answer."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_UNLESS_SET = {
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cache-Control": "no-store",
}


_OF_EVENTS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx and others would hold the events back until a buffer is full
}


def secure(headers: MutableHeaders) -> None:
    """Add the security headers to an answer's headers."""
    headers.update(_ALWAYS)
    if headers.get("Content-Type", "").startswith("text/event-stream"):
        headers.update(_OF_EVENTS)
    for name, value in _UNLESS_SET.items():
        headers.setdefault(name, value)
    if headers["Cache-Control"] != "no-store":
        headers.add_vary_header("Authorization")


class SecurityHeaders:
    """Adds the security headers to every answer, errors included; a route's own policy takes precedence."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def adding(message: Message) -> None:
            if message["type"] == "http.response.start":
                secure(MutableHeaders(scope=message))
            await send(message)

        await self.app(scope, receive, adding if scope["type"] == "http" else send)
