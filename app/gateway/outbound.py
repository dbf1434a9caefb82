"""Calls to URLs that clients name: only to public addresses, and only to an address that was checked.

A name is resolved once, all its addresses must be allowed, and the connection goes to one that was checked: a name that
resolves differently a moment later (DNS rebinding) gains nothing. Redirects are not followed, the environment's proxies
are not used, and only the status of the answer is read.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence

import httpx
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

MAX_URL = 2048
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Special-purpose networks that `ipaddress` calls global, or did in some release of 3.11 (IANA's registries, RFC 6890).
_NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        "100.64.0.0/10",  # shared by carriers (CGNAT); Alibaba's metadata
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata
        "198.18.0.0/15",  # benchmarking
        "168.63.129.16/32",  # Azure's host agent, on an address from a public range
        "192.88.99.0/24",  # 6to4 relays
        "64:ff9b:1::/48",  # local-use NAT64
        "100::/63",  # discard-only
        "2001::/23",  # protocol assignments
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fec0::/10",  # site-local (deprecated)
    )
)
_NUMBER = re.compile(r"(?:0[xX])?[0-9a-fA-F]*")


class ForbiddenDestination(Exception):
    """The URL may not be called. The text says why, but does not reveal what a name resolved to."""


class UnknownHost(Exception):
    """The name of the host can't be resolved, now at least."""


class OutboundSettings(BaseSettings):
    """Settings for outbound calls, from the environment (`CYNOSURE_OUTBOUND_…`)."""

    model_config = SettingsConfigDict(env_prefix="CYNOSURE_OUTBOUND_", frozen=True)

    schemes: frozenset[str] = Field(frozenset({"https"}), description="URL schemes that may be called.")
    ports: frozenset[int] = Field(frozenset({443}), description="Ports that may be called.")
    allowed_networks: tuple[Network, ...] = Field(
        (), description="Networks that may be called although they are not public, such as an internal receiver's."
    )
    timeout_s: float = Field(
        10.0, gt=0, le=120, description="Seconds for a whole call, including resolving and connecting."
    )


def is_public(address: Address) -> bool:
    """Whether the address is on the public internet, and so is any IPv4 address embedded in it.

    Refused: private, shared, loopback, link-local (where clouds keep their metadata), multicast and reserved ranges.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
    if address.is_multicast or address.is_reserved or address.is_unspecified or not address.is_global:
        return False
    return not any(address in network for network in _NEVER)


async def system_resolver(host: str, port: int) -> Sequence[str]:
    """All addresses of `host`."""
    results = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in results]


class Outbound:
    """Makes the calls that clients request.

    Args:
        settings: what may be called.
        resolver: maps a name and port to addresses.
        trust: certificates to trust; `None` for the usual authorities.
    """

    def __init__(
        self,
        settings: OutboundSettings,
        *,
        resolver: Resolver = system_resolver,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self._settings = settings
        self._resolver = resolver
        self._trust = trust or ssl.create_default_context()

    @property
    def timeout_s(self) -> float:
        """Longest time of a call, in seconds."""
        return self._settings.timeout_s

    def check(self, url: str) -> httpx.URL:
        """Check the URL without resolving its host, which is what happens before a job is accepted.

        Raises:
            ForbiddenDestination: scheme, port or host are not allowed.
        """
        settings = self._settings
        if len(url) > MAX_URL:
            raise ForbiddenDestination(f"the URL has more than {MAX_URL} characters")
        try:
            parsed = httpx.URL(url)
            host = parsed.raw_host.decode("ascii")
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ForbiddenDestination(f"this is not a URL: {error}") from None
        if parsed.scheme not in settings.schemes:
            raise ForbiddenDestination(f"the scheme must be {' or '.join(sorted(settings.schemes))}")
        if parsed.userinfo:
            raise ForbiddenDestination("the URL must not contain a user name or password")
        if _port_of(parsed) not in settings.ports:
            raise ForbiddenDestination(f"the port must be one of {', '.join(map(str, sorted(settings.ports)))}")
        literal = _literal(host)
        if literal is not None:
            self._allow(literal)
        return parsed

    async def post(self, url: str, *, content: bytes, headers: Mapping[str, str]) -> int:
        """POST and return the status; 300 and above means that the receiver refused.

        Raises:
            ForbiddenDestination: the URL, or an address that its host resolves to, may not be called.
            UnknownHost: its host can't be resolved.
            TimeoutError, httpx.HTTPError: there is no answer, or it is too slow.
        """
        parsed = self.check(url)
        async with asyncio.timeout(self._settings.timeout_s):
            address = await self._resolve(parsed)
            return await self._send(parsed, address, content, headers)

    async def _resolve(self, url: httpx.URL) -> Address:
        host = url.raw_host.decode("ascii")
        literal = _literal(host)
        if literal is not None:
            return literal
        try:
            addresses = [ipaddress.ip_address(text) for text in await self._resolver(host, _port_of(url))]
        except (OSError, ValueError, UnicodeError):
            raise UnknownHost(f"can't resolve {host}") from None
        for address in addresses:  # all of them, so that the name's DNS server can't choose a forbidden one
            self._allow(address)
        if not addresses:
            raise UnknownHost(f"can't resolve {host}")
        return addresses[0]

    def _allow(self, address: Address) -> None:
        inside = any(address in network for network in self._settings.allowed_networks)
        if not inside and not is_public(address):
            raise ForbiddenDestination("the address is not on the public internet")

    async def _send(self, url: httpx.URL, address: Address, content: bytes, headers: Mapping[str, str]) -> int:
        host = url.raw_host.decode("ascii")
        transport = httpx.AsyncHTTPTransport(verify=self._trust, trust_env=False, retries=0)
        async with httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=False) as client:
            request = client.build_request(
                "POST",
                url.copy_with(host=str(address)),
                content=content,
                headers={**headers, "Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity"},
                timeout=self._settings.timeout_s,
                # The connection goes to the address, but the certificate must be for the name.
                extensions={"sni_hostname": host},
            )
            answer = await client.send(request, stream=True)
            await answer.aclose()
            return answer.status_code


def _port_of(url: httpx.URL) -> int:
    return {"https": 443, "http": 80}.get(url.scheme, 0) if url.port is None else url.port


def _literal(host: str) -> Address | None:
    """The address that `host` spells, or `None` if it is a name.

    Raises:
        ForbiddenDestination: it is an address in a spelling that resolvers interpret differently (127.1, 0x7f000001,
            0177.0.0.1, 2130706433).
    """
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        last = host.rstrip(".").rpartition(".")[2]
        if not last or (_NUMBER.fullmatch(last) and (last.isdigit() or last[:2].lower() == "0x")):
            raise ForbiddenDestination("an IP address must be written in full, such as 192.0.2.1") from None
        return None
