"""Streamed answers."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class NoticeHangUps:
    """Yields to the event loop after each part of a streamed answer.

    Otherwise a burst of parts is written to a connection that broke at the first of them, because the loop had no
    chance to notice: asyncio warns of every such write, and the stream is cancelled only after all of them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_yield(message: Message) -> None:
            await send(message)
            if message.get("more_body"):
                await asyncio.sleep(0)

        await self.app(scope, receive, send_and_yield if scope["type"] == "http" else send)
