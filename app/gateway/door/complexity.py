"""A limit on the number of parts in a JSON body, in addition to the one on its bytes."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cynosure.errors import BodyTooLarge

_SEPARATORS = (b",", b"{", b"[")


def parts_of(text: bytes) -> int:
    """Number of commas, braces and brackets in a JSON text, strings included; never less than its number of values."""
    return sum(text.count(separator) for separator in _SEPARATORS)


def too_many_parts(subject: str, most: int) -> BodyTooLarge:
    """The error for a `subject` with more than `most` parts."""
    return BodyTooLarge(f"{subject} has more than {most} commas, braces and brackets.")


class PartLimit:
    """Refuses a JSON body with more than `max_parts` commas, braces and brackets, while it arrives.

    The limit on bytes leaves room for pictures, and base64 contains none of these characters. But 20 MiB of `{"a":1,…`
    would become millions of objects and as many errors about unknown fields: a gigabyte, and seconds in which the
    gateway answers no other client. Nesting that is too deep exceeds this limit too, or else the parser refuses it.

    Args:
        app: the next ASGI application.
        max_parts: most separators in a body.
        exempt: paths that check their body piece by piece.
    """

    def __init__(self, app: ASGIApp, max_parts: int, exempt: frozenset[str]) -> None:
        self.app = app
        self.max_parts = max_parts
        self.exempt = exempt

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_form = scope["type"] == "http" and Headers(scope=scope).get("content-type", "").startswith("multipart/")
        if scope["type"] != "http" or is_form or scope["path"] in self.exempt:
            await self.app(scope, receive, send)
            return
        parts = 0

        async def counted() -> Message:
            nonlocal parts
            message = await receive()
            parts += parts_of(message.get("body", b""))
            if parts > self.max_parts:
                raise too_many_parts("The body", self.max_parts)
            return message

        await self.app(scope, counted, send)
