"""Authentication and scopes of callers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.gateway.errors.problems import OPENAI_PREFIX, from_error
from app.gateway.settings import GatewaySettings
from app.gateway.state import State
from cynosure.addresses import is_loopback
from cynosure.errors import CynosureError, Forbidden, Unauthenticated
from jobs.accounts.api_keys import NOBODY, Caller
from jobs.accounts.api_keys import Scope as KeyScope

OPEN = frozenset(
    {"/healthz", "/readyz", "/openapi.json", "/docs", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"}
)
"""Paths that need no key: health, and the API's description."""
_CALLER = "cynosure.caller"
_bearer = HTTPBearer(auto_error=False, scheme_name="API key", description="`Authorization: Bearer cyn_…`")


class KeyPolicy(Enum):
    """When callers need an API key."""

    OPEN = auto()
    AFTER_FIRST_KEY = auto()
    REQUIRED = auto()


def key_policy(settings: GatewaySettings) -> KeyPolicy:
    """The policy of a deployment: by default a key is required, on a loopback address as soon as one exists."""
    if settings.auth == "auto":
        return KeyPolicy.AFTER_FIRST_KEY if is_loopback(settings.host) else KeyPolicy.REQUIRED
    return KeyPolicy.REQUIRED if settings.auth == "required" else KeyPolicy.OPEN


class Door:
    """Identifies the caller before anything else of the request is read, above all its body.

    Paths outside `OPEN` need a valid key, or a deployment that requires none. A key that is sent is checked even if
    none is needed, so that a mistake shows before it matters. Keys in query strings are ignored: query strings end up
    in logs and histories.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        state: State = scope["state"]
        try:
            identified = await _identify(state, Headers(scope=scope), scope["path"])
            taken = await state["store"].allowance.take(identified.owner, identified.limits)
        except CynosureError as error:
            await from_error(error, scope["path"])(scope, receive, send)
            return

        async def with_limits(message: Message) -> None:
            if taken is not None and message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(taken.headers)
            await send(message)

        scope[_CALLER] = identified
        await self.app(scope, receive, with_limits)


async def _identify(state: State, headers: Headers, path: str) -> Caller:
    authorization = headers.get("authorization")
    policy = key_policy(state["settings"])
    needs_key = policy is KeyPolicy.REQUIRED
    if policy is KeyPolicy.AFTER_FIRST_KEY:
        needs_key = await state["store"].api_keys.has_keys()
    # OpenAI's clients always send a key: if none is needed, one that isn't ours is ignored.
    is_filler = not needs_key and path.startswith(OPENAI_PREFIX) and " cyn_" not in (authorization or "")
    if authorization is not None and not is_filler:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("The Authorization header must be: Bearer cyn_…")
        key = await state["store"].api_keys.verify(token.strip())
        return Caller(key.id, key.scopes, key.limits)
    if needs_key:
        raise Unauthenticated("This server requires an API key: send the header Authorization: Bearer cyn_…")
    if policy is KeyPolicy.AFTER_FIRST_KEY:
        _refuse_foreign_pages(state["settings"], headers)
    return NOBODY


def _refuse_foreign_pages(settings: GatewaySettings, headers: Headers) -> None:
    """Refuse requests that another site's page makes through a browser on this machine.

    A page can reach the gateway under a host name that it points to 127.0.0.1 (DNS rebinding; the Host header shows
    it), or with a form, which browsers send without asking the server first (the Origin header shows it).

    Raises:
        Forbidden: the host or the origin is not allowed.
    """
    host = headers.get("host", "")
    name = _name_of(host)
    if not is_loopback(name) and name not in {allowed.strip("[]") for allowed in settings.allowed_hosts}:
        raise Forbidden(
            f"Without API keys this server accepts requests only from its own machine, not for host '{host[:100]}'. "
            "Create a key with `cynosure keys create`, or add the host to CYNOSURE_GATEWAY_ALLOWED_HOSTS."
        )
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host and origin not in settings.cors_origins:
        raise Forbidden(
            "Without API keys this server does not accept requests from other origins. Create a key with "
            "`cynosure keys create`, or add the origin to CYNOSURE_GATEWAY_CORS_ORIGINS."
        )


def _name_of(host: str) -> str:
    """The host of a Host header, without its port and an IPv6 address's brackets."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


async def caller(request: Request, documented: Annotated[object, Depends(_bearer)]) -> Caller:
    """The caller that `Door` identified."""
    return request.scope[_CALLER]


def _having(scope: KeyScope) -> Callable[[Caller], Awaitable[Caller]]:
    async def allowed(identified: Annotated[Caller, Depends(caller)]) -> Caller:
        if not identified.may(scope):
            raise Forbidden(f"This API key lacks the scope '{scope}'.")
        return identified

    return allowed


Submitter = Annotated[Caller, Depends(_having(KeyScope.SUBMIT))]
Reader = Annotated[Caller, Depends(_having(KeyScope.READ))]
