"""The address under which proxies publish the gateway."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.gateway.addresses import Address, keep_address, public_address
from app.gateway.errors.problems import from_error
from app.gateway.headers import secure
from app.gateway.settings import GatewaySettings
from cynosure.errors import InvalidRequest

_FORMS = {
    "X-Forwarded-Proto": re.compile(r"https?"),
    "X-Forwarded-Host": re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"),
    "X-Forwarded-Prefix": re.compile(r"(/[A-Za-z0-9._~-]+)*/?"),  # never two slashes: browsers take // for a host
}
_REDIRECT = 307  # Starlette's, to the path with or without a last slash


class ProxyHeaders:
    """Finds out the address that clients use, and has the paths inside begin behind its prefix.

    The setting takes precedence. Without it, `X-Forwarded-Proto`, `-Host` and `-Prefix` count if the connection comes
    from a trusted proxy; anybody else's are ignored, or a client could put its own host into another's answers. Of
    several values, as a chain of proxies may send, the last is the trusted proxy's own.
    """

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self.app = app
        self._settings = settings
        self._public = public_address(settings)
        self._trusts = lru_cache(maxsize=1024)(self._trusts_peer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        direct = Address(f"{scope['scheme']}://{headers.get('host', '')}")
        keep_address(scope, direct)
        try:
            address = self._public or (self._forwarded(direct, headers) if self._trusts(_peer_of(scope)) else direct)
        except InvalidRequest as error:
            answer = from_error(error, scope)
            secure(answer.headers)  # the middleware that adds them is inside this one
            await answer(scope, receive, send)
            return
        keep_address(scope, address)
        path: str = scope["path"]
        if address.prefix and path.startswith(f"{address.prefix}/"):  # a proxy that leaves it in the path
            scope["path"] = path.removeprefix(address.prefix)

        async def redirecting(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == _REDIRECT:
                headers = MutableHeaders(scope=message)
                target = urlsplit(headers["Location"])._replace(scheme="", netloc="").geturl()
                headers["Location"] = address.root + target
            await send(message)

        await self.app(scope, receive, redirecting)

    def _trusts_peer(self, host: str) -> bool:
        try:
            peer = ip_address(host)
        except ValueError:  # a Unix socket
            return False
        peer = (peer.ipv4_mapped or peer) if isinstance(peer, IPv6Address) else peer
        return any(peer in network for network in self._settings.trusted_proxies)

    @staticmethod
    def _forwarded(direct: Address, headers: Headers) -> Address:
        if not any(name in headers for name in _FORMS):
            return direct
        scheme, _, host = direct.origin.partition("://")
        told: dict[str, str] = {}
        for name, form in _FORMS.items():
            value = ",".join(headers.getlist(name)).rpartition(",")[2].strip()
            if value and not form.fullmatch(value):
                raise InvalidRequest(f"{name} is not understood: '{value[:100]}'.", field=name)
            told[name] = value
        told_host = told["X-Forwarded-Host"]
        return Address(
            f"{told['X-Forwarded-Proto'] or scheme}://{told_host or host}",
            told["X-Forwarded-Prefix"].rstrip("/"),
            is_told=bool(told_host),
        )


def _peer_of(scope: Scope) -> str:
    """The address of the other end; empty for a Unix socket."""
    client = scope.get("client")
    return client[0] if client else ""
