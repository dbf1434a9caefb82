"""API keys and their scopes. A secret is shown once; only its digest is stored."""

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
_REMEMBERED_S = 1.0  # a revocation reaches every gateway within a second, and a busy key costs no round trip
_MAX_REMEMBERED = 1024
_KEPT_AFTER_EXPIRY_S = 30 * 86_400  # `cynosure keys list` still shows an expired key
_NO_DIGEST = "0" * 64


class Scope(StrEnum):
    """A permission of a key."""

    SUBMIT = "submit"  # post jobs and cancel the owner's
    READ = "read"  # look at models, and at the owner's jobs and pictures
    ADMIN = "admin"  # both, for every owner's jobs


class NoSuchKey(LookupError):
    """There is no key of that id, or it is revoked."""


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
        """Whether it is neither revoked nor expired at `now_ms`, on the Redis server's clock."""
        return not self.is_revoked and now_ms < self.expires_ms


@dataclass(frozen=True, slots=True)
class Caller:
    """The maker of a request; its jobs are stored under `owner`. `name` is that of its key, for people."""

    owner: str
    scopes: frozenset[Scope]
    limits: Limits = UNLIMITED
    name: str = ""

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes

    @property
    def sees(self) -> str:
        """The owner whose jobs it may see, or `EVERYONE`."""
        return EVERYONE if Scope.ADMIN in self.scopes else self.owner


NOBODY = Caller(ANONYMOUS, frozenset({Scope.SUBMIT, Scope.READ}))
"""Every caller of a deployment that requires no key."""


@dataclass(frozen=True, slots=True)
class _Remembered:
    fields: Mapping[bytes, bytes]
    read_at: float
    server_ms: int


def _digest(secret: str) -> str:
    """SHA-256, not a slow hash: a secret has 256 random bits, so a dictionary attack is hopeless."""
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
    """Whether `secret` is the current one, or the previous one within its overlap. Compares in constant time."""
    digest = _digest(secret).encode()
    is_current = hmac.compare_digest(digest, fields.get(b"digest", _NO_DIGEST.encode()))
    is_previous = hmac.compare_digest(digest, fields.get(b"previous_digest", _NO_DIGEST.encode()))
    overlaps = int(fields.get(b"previous_until_ms", b"0")) > now_ms
    return is_current or (is_previous and overlaps)


class KeyRing(StoreClient):
    """The keys of one deployment. Every method raises `StoreUnavailable` if Redis is away."""

    def __init__(self, client: redis.asyncio.Redis, settings: StoreSettings) -> None:
        super().__init__(client, settings)
        self._create, self._rotate, self._revoke = (
            client.register_script(script(f"{name}_key")) for name in ("create", "rotate", "revoke")
        )
        self._remembered: OrderedDict[str, _Remembered] = OrderedDict()
        self._has_keys = False
        self._looked_at = float("-inf")

    async def verify(self, token: str) -> ApiKey:
        """The key that `token` proves.

        Raises:
            Unauthenticated: the key is unknown, expired or revoked; the message does not say which.
        """
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise Unauthenticated("This is not a Cynosure API key, which looks like cyn_ID_SECRET.")
        key_id, secret = match.groups()
        known = await self._known(key_id)
        if not _fits(secret, known.fields, known.server_ms):
            raise Unauthenticated("This API key is unknown, expired or revoked.")
        key = _key_of(key_id, known.fields)
        if not key.is_valid(known.server_ms):
            raise Unauthenticated("This API key is unknown, expired or revoked.")
        self._remember(key_id, known)
        return key

    async def caller_of(self, owner: str) -> Caller | None:
        """The owner as a caller, for work that goes on after its request; `None` if its key is no longer valid."""
        if owner == ANONYMOUS:
            return NOBODY
        known = await self._known(owner)
        if not known.fields:
            return None
        key = _key_of(owner, known.fields)
        return Caller(key.id, key.scopes, key.limits, key.name) if key.is_valid(known.server_ms) else None

    async def has_keys(self) -> bool:
        """Whether the deployment has any key. An answer of no is at most a second old; yes is final."""
        if not self._has_keys and time.monotonic() - self._looked_at >= _REMEMBERED_S:
            async with answering():
                self._has_keys = bool(await self._client.exists(self._keys.api_keys))
            self._looked_at = time.monotonic()
        return self._has_keys

    async def create(
        self, name: str, scopes: Iterable[Scope], *, days: int, limits: Limits = UNLIMITED
    ) -> tuple[ApiKey, str]:
        """Create a key; returns it with its token, which cannot be shown again."""
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
        """Every key, oldest first; an expired or revoked one is listed until 30 days after its expiry."""
        async with answering():
            ids: list[Any] = list(await self._client.zrange(self._keys.api_keys, 0, -1))
            async with self._client.pipeline(transaction=False) as pipe:
                for raw in ids:
                    pipe.hgetall(self._keys.api_key(raw.decode()))
                hashes = await pipe.execute()
        keys = [_key_of(raw.decode(), fields) for raw, fields in zip(ids, hashes, strict=True) if fields]
        return sorted(keys, key=lambda key: key.created_ms)

    async def rotate(self, key_id: str, *, overlap_s: int) -> str:
        """Give the key a new token; the old one stays valid for `overlap_s`.

        Raises:
            NoSuchKey: there is no key of that id, or it is revoked.
        """
        secret = secrets.token_urlsafe(32)
        async with answering():
            answer = await self._rotate(keys=[self._keys.api_key(key_id)], args=[_digest(secret), overlap_s * 1000])
        if answer != b"rotated":
            raise NoSuchKey(f"Key '{key_id}' is revoked." if answer == b"revoked" else f"No key '{key_id}'.")
        return f"cyn_{key_id}_{secret}"

    async def revoke(self, key_id: str) -> None:
        """Revoke the key; every gateway refuses it within a second.

        Raises:
            NoSuchKey: there is no key of that id.
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
