"""Compressed request bodies (RFC 9110, 8.4)."""

from __future__ import annotations

import asyncio
import zlib
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.gateway.errors.problems import from_error
from cynosure.errors import ENCODINGS, MalformedBody, UnsupportedEncoding

_PIECE_BYTES = 64 * 1024  # at a time: the limits inside stop a body that would become gigabytes
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # "deflate" is the name of zlib's format


class Decoder:
    """Decompresses a body piece by piece.

    Args:
        encoding: one of `cynosure.errors.ENCODINGS`.
    """

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._stream: Any = None  # of the member at hand; a gzip file may have several
        self._waiting = b""

    def feed(self, compressed: bytes) -> None:
        """Take the next compressed bytes."""
        self._waiting += compressed

    def piece(self) -> bytes:
        """Up to `_PIECE_BYTES` decompressed bytes; none if more must be fed first.

        Raises:
            MalformedBody: the bytes are not of this encoding.
        """
        while self._waiting:
            self._stream = self._stream or zlib.decompressobj(_WINDOWS[self._encoding])
            try:
                content: bytes = self._stream.decompress(self._waiting, _PIECE_BYTES)
            except zlib.error as error:
                raise self._refused(f"is not {self._encoding} ({error})") from error
            self._waiting = self._stream.unconsumed_tail
            if self._stream.eof:
                self._waiting = self._stream.unused_data.lstrip(b"\0")  # gzip files may be padded
                if self._waiting and self._encoding != "gzip":
                    raise self._refused(f"goes on after the end of its {self._encoding} data")
                self._stream = None
            if content:
                return content
        return b""

    def end(self) -> None:
        """Check that the body is whole.

        Raises:
            MalformedBody: it ends too early.
        """
        if self._stream is not None:
            raise self._refused(f"ends within its {self._encoding} data: it was cut short")

    def _refused(self, fault: str) -> MalformedBody:
        return MalformedBody(
            f"The body, whose Content-Encoding is {self._encoding}, {fault}.", field="Content-Encoding"
        )


class Decompressed:
    """Hands on bodies as they were before the client compressed them; the limits inside count what comes out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or all(name != b"content-encoding" for name, _ in scope["headers"]):
            await self.app(scope, receive, send)
            return
        headers = MutableHeaders(raw=list(scope["headers"]))
        encoding = ",".join(headers.getlist("Content-Encoding")).strip().lower().removeprefix("x-")
        if encoding in ("", "identity"):
            await self.app(scope, receive, send)
            return
        if encoding not in ENCODINGS:
            await from_error(UnsupportedEncoding(encoding), scope)(scope, receive, send)
            return
        for name in ("Content-Encoding", "Content-Length"):
            del headers[name]
        decoder, has_arrived, is_over = Decoder(encoding), False, False

        async def decompressed() -> Message:
            nonlocal has_arrived, is_over
            while is_over or not (content := decoder.piece()):
                if has_arrived and not is_over:
                    decoder.end()
                    is_over = True
                    return {"type": "http.request", "body": b"", "more_body": False}
                message = await receive()
                if message["type"] != "http.request":
                    return message
                decoder.feed(message.get("body", b""))
                has_arrived = not message.get("more_body", False)
            await asyncio.sleep(0)  # other requests get a turn
            return {"type": "http.request", "body": content, "more_body": True}

        await self.app({**scope, "headers": headers.raw}, decompressed, send)
