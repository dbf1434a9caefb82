"""API keys: who may do what. Secrets are shown once and kept as digests alone."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import redis.asyncio

from cynosure.errors import Unauthenticated
from jobs.accounts.allowance import UNLIMITED, Limits
from jobs.queue.record import ANONYMOUS, EVERYONE
from jobs.settings import StoreSettings
from jobs.store.answering import answering
from jobs.store.connection import StoreClient
from jobs.store.scripts import script

_TOKEN = re.compile(r"cyn_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_REMEMBERED_S = 1.0  # so a revocation reaches every gateway within a second, and a busy key costs no round trip
_MAX_REMEMBERED = 1024
_KEPT_AFTER_EXPIRY_S = 30 * 86_400  # so that `cynosure keys list` can still say what a key was
_NO_DIGEST = "0" * 64


class Scope(StrEnum):
    """What a key may do."""

    SUBMIT = "submit"  # post jobs and cancel one's own
    READ = "read"  # look at models, and at one's own jobs and pictures
    ADMIN = "admin"  # both, for the jobs of every owner


class NoSuchKey(LookupError):
    """No key of that id, or one that is revoked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as the store holds it; times in milliseconds of the Redis server's clock."""

    id: str
    name: str
    scopes: frozenset[Scope]
    created_ms: int
    expires_ms: int
    limits: Limits
    revoked_ms: int | None = None

    @property
    def is_revoked(self) -> bool:
        return self.revoked_ms is not None

    def is_valid(self, now_ms: float) -> bool:
        """Whether it is neither revoked nor expired at a time of the Redis server's clock."""
        return not self.is_revoked and now_ms < self.expires_ms


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request: `owner` is written on the jobs it posts."""

    owner: str
    scopes: frozenset[Scope]
    limits: Limits = UNLIMITED

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes

    @property
    def sees(self) -> str:
        """Whose jobs it may see: its own, or everyone's."""
        return EVERYONE if Scope.ADMIN in self.scopes else self.owner


NOBODY = Caller(ANONYMOUS, frozenset({Scope.SUBMIT, Scope.READ}))
"""Whoever calls where a deployment asks for no key."""


@dataclass(frozen=True, slots=True)
class _Remembered:
    fields: Mapping[bytes, bytes]
    read_at: float
    server_ms: int


def _digest(secret: str) -> str:
    """SHA-256, and no slow hash: a secret has 256 random bits, so there is no dictionary to run through."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _key_of(key_id: str, fields: Mapping[bytes, bytes]) -> ApiKey:
    text = {name.decode(): value.decode() for name, value in fields.items()}
    return ApiKey(
        id=key_id,
        name=text["name"],
        scopes=frozenset(Scope(scope) for scope in text["scopes"].split()),
        created_ms=int(text["created_ms"]),
        expires_ms=int(text["expires_ms"]),
        limits=Limits(**json.loads(text["limits"])),
        revoked_ms=int(text["revoked_ms"]) if "revoked_ms" in text else None,
    )


def _fits(secret: str, fields: Mapping[bytes, bytes], now_ms: int) -> bool:
    """Whether `secret` is the key's, or the one before it within its overlap. Takes the same time either way."""
    digest = _digest(secret).encode()
    is_current = hmac.compare_digest(digest, fields.get(b"digest", _NO_DIGEST.encode()))
    is_previous = hmac.compare_digest(digest, fields.get(b"previous_digest", _NO_DIGEST.encode()))
    overlaps = int(fields.get(b"previous_until_ms", b"0")) > now_ms
    return is_current or (is_previous and overlaps)


class KeyRing(StoreClient):
    """The keys of one deployment. Every method raises `StoreUnavailable` where Redis is away."""

    def __init__(self, client: redis.asyncio.Redis, settings: StoreSettings) -> None:
        super().__init__(client, settings)
        self._create, self._rotate, self._revoke = (
            client.register_script(script(f"{name}_key")) for name in ("create", "rotate", "revoke")
        )
        self._remembered: OrderedDict[str, _Remembered] = OrderedDict()
        self._has_keys = False
        self._looked_at = float("-inf")

    async def verify(self, token: str) -> ApiKey:
        """The key that `token` is the secret of.

        Raises:
            Unauthenticated: there is none, or it has expired or been revoked; which of these is not told.
        """
        found = _TOKEN.fullmatch(token)
        if found is None:
            raise Unauthenticated("This is no API key of Cynosure: one looks like cyn_ID_SECRET.")
        key_id, secret = found.groups()
        known = await self._known(key_id)
        if not _fits(secret, known.fields, known.server_ms):
            raise Unauthenticated("This API key is unknown, expired or revoked.")
        key = _key_of(key_id, known.fields)
        if not key.is_valid(known.server_ms):
            raise Unauthenticated("This API key is unknown, expired or revoked.")
        self._remember(key_id, known)
        return key

    async def caller_of(self, owner: str) -> Caller | None:
        """Who an owner is and what it may, for work that goes on without it; `None` where its key is valid no more."""
        if owner == ANONYMOUS:
            return NOBODY
        known = await self._known(owner)
        if not known.fields:
            return None
        key = _key_of(owner, known.fields)
        return Caller(key.id, key.scopes, key.limits) if key.is_valid(known.server_ms) else None

    async def has_keys(self) -> bool:
        """Whether a key was ever made here, at most a second ago; once true, it stays so."""
        if not self._has_keys and time.monotonic() - self._looked_at >= _REMEMBERED_S:
            async with answering():
                self._has_keys = bool(await self._client.exists(self._keys.api_keys))
            self._looked_at = time.monotonic()
        return self._has_keys

    async def create(
        self, name: str, scopes: Iterable[Scope], *, days: int, limits: Limits = UNLIMITED
    ) -> tuple[ApiKey, str]:
        """A new key, and its token, which nothing can show again."""
        key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        async with answering():
            await self._create(
                keys=[self._keys.api_key(key_id), self._keys.api_keys],
                args=[
                    key_id,
                    name,
                    " ".join(sorted(scopes)),
                    _digest(secret),
                    days * 86_400,
                    _KEPT_AFTER_EXPIRY_S,
                    json.dumps(asdict(limits)),
                ],
            )
            fields: Any = await self._client.hgetall(self._keys.api_key(key_id))
        return _key_of(key_id, fields), f"cyn_{key_id}_{secret}"

    async def all(self) -> list[ApiKey]:
        """Every key, oldest first, the expired and revoked of the last month too."""
        async with answering():
            ids: list[Any] = list(await self._client.zrange(self._keys.api_keys, 0, -1))
            async with self._client.pipeline(transaction=False) as pipe:
                for raw in ids:
                    pipe.hgetall(self._keys.api_key(raw.decode()))
                found = await pipe.execute()
        keys = [_key_of(raw.decode(), fields) for raw, fields in zip(ids, found, strict=True) if fields]
        return sorted(keys, key=lambda key: key.created_ms)

    async def rotate(self, key_id: str, *, overlap_s: int) -> str:
        """A new token for the key; the old one goes on for `overlap_s`.

        Raises:
            NoSuchKey: there is none of that id, or it is revoked.
        """
        secret = secrets.token_urlsafe(32)
        async with answering():
            answer = await self._rotate(keys=[self._keys.api_key(key_id)], args=[_digest(secret), overlap_s * 1000])
        if answer != b"rotated":
            raise NoSuchKey(f"Key '{key_id}' is {answer.decode()}.")
        return f"cyn_{key_id}_{secret}"

    async def revoke(self, key_id: str) -> None:
        """End the key, within a second everywhere.

        Raises:
            NoSuchKey: there is none of that id.
        """
        async with answering():
            if await self._revoke(keys=[self._keys.api_key(key_id)]) != b"revoked":
                raise NoSuchKey(f"No key '{key_id}'.")

    async def _known(self, key_id: str) -> _Remembered:
        remembered = self._remembered.get(key_id)
        if remembered is not None and time.monotonic() - remembered.read_at < _REMEMBERED_S:
            return remembered
        read_at = time.monotonic()
        async with answering(), self._client.pipeline(transaction=False) as pipe:
            pipe.hgetall(self._keys.api_key(key_id))
            pipe.time()
            fields, (seconds, microseconds) = await pipe.execute()
        return _Remembered(fields, read_at, seconds * 1000 + microseconds // 1000)

    def _remember(self, key_id: str, known: _Remembered) -> None:
        """Cache verified keys only, so guessed ids cannot evict real ones."""
        self._remembered[key_id] = known
        self._remembered.move_to_end(key_id)
        if len(self._remembered) > _MAX_REMEMBERED:
            self._remembered.popitem(last=False)
