"""A limit on the parts of a JSON body, beside the one on its bytes."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cynosure.errors import BodyTooLarge

_SEPARATORS = (b",", b"{", b"[")


def parts_of(text: bytes) -> int:
    """Commas, braces and brackets in a JSON text, those within strings too: at least as many as it has values."""
    return sum(text.count(separator) for separator in _SEPARATORS)


def too_many_parts(what: str, most: int) -> BodyTooLarge:
    """The refusal of `what` has over `most` of them."""
    return BodyTooLarge(f"{what} has over {most} commas, braces and brackets.")


class PartLimit:
    """Refuses a JSON body of more than `max_parts` commas, braces and brackets, as it arrives.

    The bytes are limited for pictures' sake, and pictures in base64 have none of these. But 20 MiB of `{"a":1,…` would
    become millions of objects, and as many complaints about unknown fields: a gigabyte, and seconds in which nobody
    else is answered. A nesting that is too deep has too many parts as well, or else the parser refuses it.

    Args:
        app: what comes next.
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
