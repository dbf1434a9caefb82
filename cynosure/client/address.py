"""Addresses of servers, as people type them."""

from __future__ import annotations

import re
from ipaddress import IPv6Address

from pydantic import HttpUrl, TypeAdapter, ValidationError

_URL = TypeAdapter(HttpUrl)
_SCHEME = re.compile(r"https?:|\w+://", re.IGNORECASE)


def server_url(text: str) -> str:
    """The URL of a server; without a scheme it is `http`.

    >>> server_url("localhost:8000"), server_url("::1"), server_url("https://draw.example/api/")
    ('http://localhost:8000', 'http://[::1]', 'https://draw.example/api')

    Raises:
        ValueError: no server can have this address.
    """
    given = text.strip()
    if not _SCHEME.match(given):
        given = f"http://[{given}]" if _is_ipv6(given) else f"http://{given}"
    try:
        url = _URL.validate_python(given)
    except ValidationError:
        url = None
    if url is None or url.query or url.fragment:
        raise ValueError(
            f"'{text}' is not the address of a server, such as http://127.0.0.1:8000 or https://HOST/PATH."
        )
    return str(url).rstrip("/")


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True
