"""The public address: how clients reach this gateway, directly or through proxies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.types import Scope

from app.gateway.settings import GatewaySettings

_KEY = "cynosure.address"


@dataclass(frozen=True, slots=True)
class Address:
    """The address of the gateway as the client of one request knows it.

    Attributes:
        origin: scheme and host, such as `https://img.example.org`.
        prefix: path under which the gateway is published, such as `/draw`; empty for none.
        is_told: whether the origin comes from the settings or a proxy, rather than from the request itself.
    """

    origin: str
    prefix: str = ""
    is_told: bool = False

    @property
    def root(self) -> str:
        """What precedes the path of every link; a client completes links without an origin by itself."""
        return self.base if self.is_told else self.prefix

    @property
    def base(self) -> str:
        """The same, always with the origin: for links that are opened elsewhere."""
        return self.origin + self.prefix


def address_of(scope: Scope) -> Address:
    """The address that `ProxyHeaders` found for a request."""
    address: Address = scope[_KEY]
    return address


def keep_address(scope: Scope, address: Address) -> None:
    """Make the address known to everything that handles the request."""
    scope[_KEY] = address


def public_address(settings: GatewaySettings) -> Address | None:
    """The address from the settings, if they have one."""
    if settings.public_url is None:
        return None
    url = urlsplit(str(settings.public_url))
    return Address(f"{url.scheme}://{url.netloc}", url.path.rstrip("/"), is_told=True)


async def _address(request: Request) -> Address:
    return address_of(request.scope)


AddressDep = Annotated[Address, Depends(_address)]
