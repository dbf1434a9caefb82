"""Where a client's address may lead, and where the connection goes."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.gateway.outbound import MAX_URL, ForbiddenDestination, Outbound, OutboundSettings, UnknownHost, is_public
from tests.conftest import certify

pytestmark = pytest.mark.anyio


FORBIDDEN = [
    "http://example.org/",  # not https
    "ftp://example.org/",
    "file:///etc/passwd",
    "gopher://example.org/",
    "https://example.org:22/",
    "https://example.org:6379/",
    "https://user:secret@example.org/",
    "https:///nothing",
    "https://" + "a" * MAX_URL + ".org/",
    "https://127.0.0.1/",
    "https://127.1/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.0.0.1/",
    "https://0177.0.0.1/",
    "https://017700000001/",
    "https://127.0.0.1./",
    "https://0/",
    "https://0.0.0.0/",
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://192.168.1.1/",
    "https://100.64.0.1/",
    "https://100.100.100.200/",  # metadata of Alibaba
    "https://169.254.169.254/latest/meta-data/",  # of AWS, Google, Azure
    "https://192.0.0.192/",  # of Oracle
    "https://168.63.129.16/",  # of Azure
    "https://[fd00:ec2::254]/",  # of AWS, IPv6
    "https://224.0.0.1/",
    "https://255.255.255.255/",
    "https://[::]/",
    "https://[::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::ffff:10.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",  # NAT64
    "https://[64:ff9b:1::1]/",
    "https://[2002:7f00:1::]/",  # 6to4
    "https://[2001:0:4136:e378:8000:63bf:f5ff:fffe]/",  # Teredo of 10.0.0.1
    "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[fc00::1]/",
    "https://[ff02::1]/",
    "https://①②⑦.⓪.⓪.①/",  # digits in circles, which IDNA turns into 127.0.0.1
    "https://example.org:0/",
    "//example.org/",
    "",
]


@pytest.mark.parametrize("url", FORBIDDEN)
def test_an_address_that_must_not_be_called_is_refused_at_the_door(url: str) -> None:
    with pytest.raises(ForbiddenDestination):
        Outbound(OutboundSettings()).check(url)


@pytest.mark.parametrize(
    "url", ["https://example.org/hook?a=1", "https://93.184.215.14/", "https://[2606:2800::1]:443/"]
)
def test_a_public_address_passes(url: str) -> None:
    assert str(Outbound(OutboundSettings()).check(url)).startswith(url.removesuffix(":443/"))


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["93.184.215.14", "10.0.0.1"], ["::1"], ["::ffff:169.254.169.254"], ["fe80::1%1"]],
    ids=str,
)
async def test_a_name_that_leads_inside_is_refused_by_any_of_its_addresses(addresses: list[str]) -> None:
    async def resolver(host: str, port: int) -> Sequence[str]:
        return addresses

    with pytest.raises(ForbiddenDestination) as refusal:
        await Outbound(OutboundSettings(), resolver=resolver).post("https://a.example/", content=b"", headers={})
    assert not any(address in str(refusal.value) for address in addresses), "what it led to is not told"


async def test_names_of_this_machine_are_refused_through_the_systems_resolver() -> None:
    for name in ("localhost", "LOCALHOST."):  # some resolvers don't know the second
        with pytest.raises((ForbiddenDestination, UnknownHost)):
            await Outbound(OutboundSettings()).post(f"https://{name}/", content=b"", headers={})


async def test_a_name_without_an_address_is_not_called_forbidden() -> None:
    async def nothing(host: str, port: int) -> Sequence[str]:
        return []

    for outbound in (Outbound(OutboundSettings()), Outbound(OutboundSettings(), resolver=nothing)):
        with pytest.raises(UnknownHost, match=r"^can't resolve nowhere\.invalid$"):
            await outbound.post("https://nowhere.invalid/", content=b"", headers={})


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_as_public_in_whatever_ipv6_address_it_hides(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    hidden = [
        ipaddress.IPv6Address((0xFFFF << 32) | number),
        ipaddress.IPv6Address((0x0064_FF9B << 96) | number),
        ipaddress.IPv6Address((0x2002 << 112) | (number << 80)),
        ipaddress.IPv6Address((0x2001_0000 << 96) | (number ^ 0xFFFF_FFFF)),
    ]
    assert {is_public(one) for one in hidden} == {is_public(address)}


class Receiver:
    """A server of this machine that notes what it is sent, and answers with `status`."""

    def __init__(self, status: str = "204 No Content", headers: str = "", pause_s: float = 0.0) -> None:
        self.requests: list[bytes] = []
        self._answer = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n{headers}\r\n".encode()
        self._pause_s = pause_s
        self._serving: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        async with server:
            yield server.sockets[0].getsockname()[1]
            await asyncio.gather(*self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head + await reader.readexactly(4))
            for byte in self._answer:
                writer.write(bytes([byte]))
                if self._pause_s:
                    await writer.drain()
                    await asyncio.sleep(self._pause_s)
            await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def inside(port: int, **settings: object) -> OutboundSettings:
    return OutboundSettings.model_validate(
        {"schemes": ["http", "https"], "ports": [port], "allowed_networks": ["127.0.0.0/8"], **settings}
    )


async def test_a_name_that_changes_between_looking_and_connecting_gains_nothing() -> None:
    """DNS rebinding: asked twice, the name would lead inside at the second time. It is asked once."""
    asked: list[str] = []

    async def resolver(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    receiver = Receiver()
    async with receiver.running() as port:
        outbound = Outbound(inside(port), resolver=resolver)
        assert await outbound.post(f"http://a.example:{port}/h?x=1", content=b"body", headers={"X-Sig": "s"}) == 204
        assert asked == ["a.example"]
        with pytest.raises(ForbiddenDestination):
            await outbound.post(f"http://a.example:{port}/h", content=b"body", headers={})
    [request] = receiver.requests
    assert request.startswith(b"POST /h?x=1 HTTP/1.1\r\n")
    assert f"host: a.example:{port}\r\n".encode() in request.lower()
    assert b"x-sig: s" in request.lower()
    assert request.endswith(b"\r\n\r\nbody")


async def test_redirects_are_not_followed_and_proxies_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    other = Receiver()
    async with other.running() as elsewhere:
        receiver = Receiver("302 Found", f"Location: http://127.0.0.1:{elsewhere}/\r\n")
        async with receiver.running() as port:
            url = f"http://127.0.0.1:{port}/"
            assert await Outbound(inside(port)).post(url, content=b"body", headers={}) == 302
    assert len(receiver.requests) == 1
    assert other.requests == []


async def test_an_answer_that_drips_is_given_up() -> None:
    receiver = Receiver(pause_s=0.05)
    async with receiver.running() as port:
        with pytest.raises((TimeoutError, httpx.TimeoutException)):
            await Outbound(inside(port, timeout_s=0.3)).post(f"http://127.0.0.1:{port}/", content=b"body", headers={})


def certified(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a certificate for `name`, and a client's that trusts it."""
    cert = certify(folder, name)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, folder / "key.pem")
    return server, ssl.create_default_context(cafile=cert)


async def test_the_certificate_must_be_the_names_though_the_connection_goes_to_an_address(tmp_path: Path) -> None:
    async def resolver(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    server, trust = certified(tmp_path, "hook.example")
    receiver = Receiver()
    async with receiver.running(server) as port:
        outbound = Outbound(inside(port), resolver=resolver, trust=trust)
        assert await outbound.post(f"https://hook.example:{port}/", content=b"body", headers={}) == 204
        with pytest.raises(httpx.ConnectError, match="certificate"):
            await outbound.post(f"https://other.example:{port}/", content=b"body", headers={})
        with pytest.raises(httpx.ConnectError, match="certificate"):
            await Outbound(inside(port), resolver=resolver).post(
                f"https://hook.example:{port}/", content=b"body", headers={}
            )
    assert len(receiver.requests) == 1


async def test_the_settings_in_the_docs_allow_the_receiver_in_the_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    text = Path("docs/api.md").read_text()
    [url] = re.findall(r'"webhook_url": "(http://[^"]+)"', text)
    for name, value in re.findall(r"(CYNOSURE_OUTBOUND_\w+)='([^']+)'", text):
        monkeypatch.setenv(name, value)
    Outbound(OutboundSettings()).check(url)
