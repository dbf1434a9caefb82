"""Authentication and scopes of callers."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.gateway.addresses import Address, address_of, public_address
from app.gateway.door.links import linked_caller
from app.gateway.errors.problems import A1111_PREFIX, CLIENTS_PREFIX, from_error
from app.gateway.settings import GatewaySettings
from app.gateway.state import State
from cynosure.addresses import is_loopback
from cynosure.errors import CynosureError, Forbidden, Unauthenticated
from jobs.accounts.api_keys import NOBODY, Caller
from jobs.accounts.api_keys import Scope as KeyScope

OPEN = frozenset(
    {
        "/",
        "/favicon.ico",
        "/healthz",
        "/readyz",
        "/openapi.json",
        "/docs",
        "/docs/errors",
        "/docs/swagger-ui-bundle.js",
        "/docs/swagger-ui.css",
    }
)
"""Paths that need no key: health, the API's description, and the studio's page."""
OPEN_FOLDER = "/studio/"
"""The studio's files need none either; it sends the key that its user gives it with its own requests."""
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

    Paths outside `OPEN` and `OPEN_FOLDER` need a valid key, or a deployment that requires none. A key that is sent is
    checked even if none is needed, so that a mistake shows before it matters. Keys in query strings are ignored: query
    strings end up in logs and histories. A signed link may: it opens one picture, for a while.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN or scope["path"].startswith(OPEN_FOLDER):
            await self.app(scope, receive, send)
            return
        state: State = scope["state"]
        try:
            headers = Headers(scope=scope)
            linked = None if "authorization" in headers else await linked_caller(state, scope)
            identified = linked or await _identify(state, headers, scope["path"], address_of(scope))
            # Links have the key's limits apart: viewers of a popular page leave its owner's own requests alone.
            bucket = identified.owner if linked is None else f"{identified.owner}:links"
            taken = await state["store"].allowance.take(bucket, identified.limits)
        except CynosureError as error:
            await from_error(error, scope)(scope, receive, send)
            return

        async def with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                answered.update(taken.headers if taken is not None else {})
                if linked is not None:
                    answered["Cross-Origin-Resource-Policy"] = "cross-origin"  # pages of any site may show it
            await send(message)

        scope[_CALLER] = identified
        await self.app(scope, receive, with_limits)


async def _identify(state: State, headers: Headers, path: str, address: Address) -> Caller:
    authorization = headers.get("authorization")
    policy = key_policy(state["settings"])
    needs_key = policy is KeyPolicy.REQUIRED
    if policy is KeyPolicy.AFTER_FIRST_KEY:
        needs_key = await state["store"].api_keys.has_keys()
    if authorization is not None:
        token = _token_in(authorization, takes_basic=path.startswith(A1111_PREFIX))
        # Others' clients always send a key, or a password: if none is needed, one that isn't ours is ignored.
        is_theirs = path.startswith((CLIENTS_PREFIX, A1111_PREFIX)) and not (token or "").startswith("cyn_")
        if needs_key or not is_theirs:
            if token is None:
                raise Unauthenticated("The Authorization header must be: Bearer cyn_…")
            key = await state["store"].api_keys.verify(token)
            return Caller(key.id, key.scopes, key.limits, key.name)
    if needs_key:
        raise Unauthenticated("This server requires an API key: send the header Authorization: Bearer cyn_…")
    if policy is KeyPolicy.AFTER_FIRST_KEY:
        _refuse_foreign_pages(state["settings"], headers, address)
    return NOBODY


def _token_in(authorization: str, *, takes_basic: bool) -> str | None:
    """The API key in the header: a bearer token or, for clients that know only user and password, the password.

    Browsers send a password by themselves, also for another site's page, but only to a server that has asked for one
    (`WWW-Authenticate: Basic`); this one never does.
    """
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    if scheme.lower() != "basic" or not takes_basic:
        return None
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return None


def _refuse_foreign_pages(settings: GatewaySettings, headers: Headers, address: Address) -> None:
    """Refuse requests that another site's page makes through a browser on this machine.

    A page can reach the gateway under a host name that it points to 127.0.0.1 (DNS rebinding; the Host header shows
    it), or with a form, which browsers send without asking the server first (the Origin header shows it). A page that
    rebinds its name can set X-Forwarded-Host, so that one never stands for Host; a form can't, so the origin that a
    proxy told is as good as our own.

    Raises:
        Forbidden: the host or the origin is not allowed.
    """
    host = headers.get("host", "")
    public = public_address(settings)
    own = () if public is None else (_name_of(public.origin.partition("://")[2]),)
    name = _name_of(host)
    if not is_loopback(name) and name not in (*own, *(allowed.strip("[]") for allowed in settings.allowed_hosts)):
        raise Forbidden(
            f"Without API keys this server accepts requests only from its own machine, not for host '{host[:100]}'. "
            "Create a key with `cynosure keys create`, or add the host to CYNOSURE_GATEWAY_ALLOWED_HOSTS, or set "
            "CYNOSURE_GATEWAY_PUBLIC_URL."
        )
    origin = headers.get("origin")
    is_own = origin is None or origin.partition("://")[2] == host or origin == address.origin
    if not is_own and origin not in settings.cors_origins:
        raise Forbidden(
            "Without API keys this server does not accept requests from other origins. Create a key with "
            "`cynosure keys create`, or add the origin to CYNOSURE_GATEWAY_CORS_ORIGINS."
        )


def _name_of(host: str) -> str:
    """The host of a Host header, without its port and an IPv6 address's brackets."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def caller_of(scope: Scope, needed: KeyScope) -> Caller:
    """The caller that `Door` identified.

    Raises:
        Forbidden: it lacks the scope that is needed.
    """
    identified: Caller = scope[_CALLER]
    if not identified.may(needed):
        if identified is NOBODY:
            raise Forbidden(
                f"This takes an API key with the scope '{needed}': cynosure keys create --name NAME --scopes {needed}"
            )
        raise Forbidden(f"This API key lacks the scope '{needed}'.")
    return identified


def _having(needed: KeyScope) -> Callable[[Request, object], Awaitable[Caller]]:
    async def allowed(request: Request, documented: Annotated[object, Depends(_bearer)]) -> Caller:
        return caller_of(request.scope, needed)

    return allowed


Submitter = Annotated[Caller, Depends(_having(KeyScope.SUBMIT))]
Reader = Annotated[Caller, Depends(_having(KeyScope.READ))]
Admin = Annotated[Caller, Depends(_having(KeyScope.ADMIN))]
