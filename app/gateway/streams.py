"""Answers on their way out: streams that notice a broken connection, HEAD without a body."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEAD = "cynosure.is_head"


class NoticeHangUps:
    """Yields to the event loop after each part of a streamed answer.

    Otherwise a burst of parts is written to a connection that broke at the first of them, because the loop had no
    chance to notice: the stream is cancelled only after all of them. Nor is a client noticed that reads too slowly.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_yield(message: Message) -> None:
            await send(message)
            if message.get("more_body"):
                await asyncio.sleep(0)

        await self.app(scope, receive, send_and_yield if scope["type"] == "http" else send)


def is_head(request: Request) -> bool:
    """Whether the answer's body will not be sent."""
    return bool(request.scope.get(_HEAD))


class HeadAsGet:
    """Answers HEAD as GET, without the body (RFC 9110, 9.3.2): for uptime checks, load balancers and `curl -I`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body"})  # a stream has nothing more to say

        await self.app({**scope, "method": "GET", _HEAD: True}, receive, without_body)
