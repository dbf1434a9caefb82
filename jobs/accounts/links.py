"""Signatures of links to pictures, which work without an API key for a while."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import Any

from cynosure.errors import InvalidLink, LinkExpired
from jobs.store.answering import answering
from jobs.store.connection import StoreClient

_SECRET_BYTES = 32


class LinkSigner(StoreClient):
    """Signs and verifies, with one secret of the deployment. Every method raises `StoreUnavailable` if Redis is away.

    Times are seconds of the Redis server's clock.
    """

    async def sign(self, owner: str, paths: Sequence[str], *, lifetime_s: int) -> tuple[int, list[str]]:
        """The time until which the links are valid, and the signature of each path, for pictures of `owner`."""
        secret, now = await self._secret_and_time()
        expires = now + lifetime_s
        return expires, [_signature(secret, owner, path, expires) for path in paths]

    async def verify(self, owner: str, path: str, expires: int, signature: str) -> None:
        """Check the link to one path.

        Raises:
            InvalidLink: the signature is not of this owner, path and time, or the secret is another one now.
            LinkExpired: it is, but the time is over.
        """
        secret, now = await self._secret_and_time()
        if not hmac.compare_digest(_signature(secret, owner, path, expires).encode(), signature.encode()):
            raise InvalidLink("This link was changed or revoked, or its picture is no longer kept.")
        if now >= expires:
            raise LinkExpired("This link has expired. Get a new one with POST /jobs/{id}/links and an API key.")

    async def revoke_all(self) -> None:
        """Make every signature invalid; the next link is signed with a new secret."""
        async with answering():
            await self._client.delete(self._keys.link_secret)

    async def _secret_and_time(self) -> tuple[bytes, int]:
        async with answering(), self._client.pipeline() as pipe:
            pipe.set(self._keys.link_secret, secrets.token_bytes(_SECRET_BYTES), nx=True)
            pipe.get(self._keys.link_secret)
            pipe.time()
            answers: list[Any] = await pipe.execute()
        _, secret, (seconds, _) = answers
        return secret, seconds


def _signature(secret: bytes, owner: str, path: str, expires: int) -> str:
    signed = f"{owner}\n{path}\n{expires}".encode()
    return base64.urlsafe_b64encode(hmac.digest(secret, signed, hashlib.sha256)).rstrip(b"=").decode()
