"""Ids of requests: they tie a client's request to its answer, to problems, to its job and to the log."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.gateway.errors.problems import REQUEST_ID
from jobs import traces
from jobs.logs import keep

log = logging.getLogger("app.access")

_SANE = re.compile(r"[A-Za-z0-9._:=@/+-]{1,128}")


def new_request_id() -> str:
    """A random id. Queued jobs have it in their records, so it is as short as a span's."""
    return secrets.token_hex(8)


class RequestIds:
    """Takes the client's `X-Request-Id`, or makes one, and returns it with the answer.

    Args:
        app: the rest of the gateway.
        logs_access: whether every request gets a line in the log; never with its query string, which may hold a
            signature.
    """

    def __init__(self, app: ASGIApp, *, logs_access: bool) -> None:
        self.app = app
        self._logs_access = logs_access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = sent if _SANE.fullmatch(sent) else new_request_id()
        # Each request has a task of its own, and so a context.
        keep(request_id=request_id, trace_id=traces.trace_id_of(traces.traceparent()))
        # FastAPI's span has the query string, which may hold a signature.
        traces.describe({"cynosure.request_id": request_id, **({"url.query": "…"} if scope["query_string"] else {})})
        path, started = scope["path"], time.monotonic()
        status: int | None = None  # stays so if the client goes before the answer begins

        async def with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self.app(scope, receive, with_id)
        except Exception:
            status = status or 500  # which is answered outside
            raise
        finally:
            if self._logs_access:
                seconds = round(time.monotonic() - started, 3)
                line = {"method": scope["method"], "path": path, "status": status, "seconds": seconds}
                log.info("answered", extra=line)
