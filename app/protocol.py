"""How the gateway reads HTTP from a connection."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
_INVALID = "Invalid HTTP request received."


class _Gathering:
    """A transport that sends together what is written in one turn of the event loop: an answer's head and its body.

    A write of its own for each costs a tenth of the time of a small answer.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._written:
            self._loop.call_soon(self._send)
        self._written.append(data)

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._written:
            written, self._written = self._written, []
            self._transport.writelines(written)


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 only: a request to upgrade is answered as if it did not ask for that (RFC 9110, 7.8).

    The parser itself has no limit for a request's line, headers and trailers: what is not complete after
    `MAX_HEAD_BYTES` is refused.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._incomplete_bytes = 0
        self._is_complete = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _Gathering(transport, self.loop)))

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._is_complete, unread = False, data
        try:
            while unread:
                unread = self._fed(unread)
        except httptools.HttpParserError:
            self._refuse()
            return
        self._incomplete_bytes = 0 if self._is_complete else self._incomplete_bytes + len(data)
        if self._incomplete_bytes > MAX_HEAD_BYTES:
            self._refuse()

    def _fed(self, data: bytes) -> bytes:
        """Parse the data; returns what is to be parsed again.

        At a head with an offer to upgrade the parser stops, and takes what follows for no body.

        Raises:
            httptools.HttpParserError: it is not HTTP.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            method = self.parser.get_method()
            if method == b"CONNECT":  # it needs no offer
                raise httptools.HttpParserError from None
            kept = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
            first = b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())
            return b"\r\n".join([first, *kept, b"", data[offer.args[0] :]])
        return b""

    def _refuse(self) -> None:
        self.logger.warning(_INVALID)
        self.send_400_response(_INVALID)

    def on_headers_complete(self) -> None:
        self._is_complete = True
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._is_complete = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_complete = True
        if not self.parser.should_upgrade():
            super().on_message_complete()
