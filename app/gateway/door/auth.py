"""Who calls, and what they may."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.gateway.errors.problems import OPENAI_PREFIX, from_error
from app.gateway.settings import GatewaySettings
from app.gateway.state import State
from cynosure.errors import CynosureError, Forbidden, Unauthenticated
from jobs.accounts.api_keys import NOBODY, Caller
from jobs.accounts.api_keys import Scope as KeyScope

OPEN = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})
"""Paths that need no key: health, and what the API looks like."""
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_CALLER = "cynosure.caller"
_bearer = HTTPBearer(auto_error=False, scheme_name="API key", description="`Authorization: Bearer cyn_…`")


def is_loopback(host: str) -> bool:
    """Whether `host` is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def must_ask(settings: GatewaySettings) -> bool | None:
    """Whether callers need a key: yes, no, or (`None`) as soon as there is one."""
    if settings.auth == "auto":
        return None if is_loopback(settings.host) else True
    return settings.auth == "required"


class Door:
    """Finds out who calls before anything else of a request is read, its body least of all.

    What is not in `OPEN` needs a valid key, or a deployment that asks for none. A key that is sent is checked even
    where none is needed, so that a mistake shows before it matters. Keys in query strings are not looked at: those
    end up in logs and histories.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        state: State = scope["state"]
        try:
            known = await _identify(state, Headers(scope=scope), scope["path"])
            taken = await state["store"].allowance.take(known.owner, known.limits)
        except CynosureError as error:
            await from_error(error, scope["path"])(scope, receive, send)
            return

        async def telling(message: Message) -> None:
            if taken is not None and message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(taken.headers)
            await send(message)

        scope[_CALLER] = known
        await self.app(scope, receive, telling)


async def _identify(state: State, headers: Headers, path: str) -> Caller:
    authorization = headers.get("authorization")
    asked = must_ask(state["settings"])
    if asked is None:
        asked = await state["store"].api_keys.has_keys()
    # OpenAI's clients can't do without a key: what is none of ours is not looked at where none is asked for.
    is_filler = not asked and path.startswith(OPENAI_PREFIX) and " cyn_" not in (authorization or "")
    if authorization is not None and not is_filler:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("Authorization must be: Bearer cyn_…")
        key = await state["store"].api_keys.verify(token.strip())
        return Caller(key.id, key.scopes, key.limits)
    if asked:
        raise Unauthenticated("This server asks for an API key: send Authorization: Bearer cyn_…")
    if must_ask(state["settings"]) is None:
        _refuse_foreign_pages(state["settings"], headers)
    return NOBODY


def _refuse_foreign_pages(settings: GatewaySettings, headers: Headers) -> None:
    """A gateway that is open to its own machine is not open to every page in that machine's browser.

    A page can reach it under a name of its own that it leads to 127.0.0.1 (DNS rebinding; the Host header tells), or by
    a form that needs no permission to be sent (the Origin header tells).
    """
    host = headers.get("host", "")
    if _name_of(host) not in (*_LOOPBACK_NAMES, *settings.allowed_hosts):
        raise Forbidden(
            f"Without API keys this server answers to its own machine alone, not as '{host[:100]}'. Make a key with "
            "`cynosure keys create`, or name it in CYNOSURE_GATEWAY_ALLOWED_HOSTS."
        )
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host and origin not in settings.cors_origins:
        raise Forbidden(
            "Without API keys this server answers no other site's pages. Make a key with `cynosure keys create`, or "
            "name the origin in CYNOSURE_GATEWAY_CORS_ORIGINS."
        )


def _name_of(host: str) -> str:
    """The host of a Host header, without its port."""
    return host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]


async def caller(request: Request, documented: Annotated[object, Depends(_bearer)]) -> Caller:
    """Whom the door let in."""
    return request.scope[_CALLER]


def _having(scope: KeyScope) -> Callable[[Caller], Awaitable[Caller]]:
    async def allowed(known: Annotated[Caller, Depends(caller)]) -> Caller:
        if not known.may(scope):
            raise Forbidden(f"This API key lacks the scope '{scope}'.")
        return known

    return allowed


Submitter = Annotated[Caller, Depends(_having(KeyScope.SUBMIT))]
Reader = Annotated[Caller, Depends(_having(KeyScope.READ))]
