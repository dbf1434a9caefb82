"""Connections to the store that survive its restarts, its moves and broken networks."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Self

import redis
import redis.asyncio
from redis.backoff import ExponentialWithJitterBackoff
from redis.commands.core import AsyncScript

from cynosure.errors import StoreUnavailable
from jobs.settings import StoreSettings
from jobs.store.keyspace import Keys

TIMEOUT_S = 5.0  # for an answer; a store that is swapping or saving takes a second
# Of a call whose connection broke: 3 s of pauses at most. Every script is harmless when it is run twice; those that
# count say what for them that costs.
RETRIES = 6
CONNECTIONS = 100  # of a client: calls that wait for the disk, or for an answer, keep theirs meanwhile
FSYNC_TIMEOUT_MS = int(800 * TIMEOUT_S)
"""Less than the connection's own patience: that the disk did not confirm is an answer, which must arrive."""
_BACKOFF = ExponentialWithJitterBackoff(base=0.05, cap=1.0)


def connect(settings: StoreSettings, name: str, *, timeout_s: float = TIMEOUT_S) -> redis.Redis:
    """A client for threads, which the store shows by `name`; `timeout_s` is more than any of its calls may block.

    The address is looked up anew for every connection, so the store may move behind its name. Of more calls at once
    than `CONNECTIONS` some wait for others, as long as one of them may take.
    """
    retry = redis.retry.Retry(_BACKOFF, RETRIES)
    options = _options(settings, name, timeout_s)
    return redis.Redis.from_pool(redis.BlockingConnectionPool.from_url(settings.redis_url, retry=retry, **options))


def connect_async(settings: StoreSettings, name: str, *, timeout_s: float = TIMEOUT_S) -> redis.asyncio.Redis:
    """A client for coroutines; otherwise as `connect`."""
    retry = redis.asyncio.retry.Retry(_BACKOFF, RETRIES)
    options = _options(settings, name, timeout_s)
    pool = redis.asyncio.BlockingConnectionPool.from_url(settings.redis_url, retry=retry, **options)
    return redis.asyncio.Redis.from_pool(pool)


@asynccontextmanager
async def connected(
    settings: StoreSettings, name: str, *, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[redis.asyncio.Redis]:
    """A client for coroutines, closed at the end."""
    client = connect_async(settings, name, timeout_s=timeout_s)
    try:
        yield client
    finally:
        await client.aclose()


class StoreClient:
    """A part of the store, for coroutines; parts may share a client.

    Attributes:
        timeout_s: longer than any of its calls may block.
    """

    timeout_s: ClassVar[float] = TIMEOUT_S

    def __init__(self, client: redis.asyncio.Redis, settings: StoreSettings) -> None:
        self._client = client
        self._settings = settings
        self._keys = Keys(settings.key_prefix)

    @classmethod
    @asynccontextmanager
    async def connect(cls, settings: StoreSettings) -> AsyncIterator[Self]:
        """One of its own, where nothing else of the store is needed."""
        async with connected(settings, "cynosure", timeout_s=cls.timeout_s) as client:
            yield cls(client, settings)

    async def _accepting(self, script: AsyncScript, *, keys: Sequence[str], args: Sequence[str | int]) -> Any:
        """What a script answers that accepts something: with durability `fsync`, once the disk has what it wrote.

        WAITAOF waits for the writes of its own connection alone: where that breaks, both calls are made again on
        another. So the script writes something also where it finds that it ran before.

        Raises:
            StoreUnavailable: the disk does not have it, or not in time. It may be accepted all the same.
        """
        if self._settings.durability != "fsync":
            return await script(keys=keys, args=args)
        async with self._client.pipeline(transaction=False) as pipe:
            await script(keys=keys, args=args, client=pipe)
            pipe.waitaof(1, 0, FSYNC_TIMEOUT_MS)
            answer, confirmed = await pipe.execute(raise_on_error=False)
        if isinstance(answer, redis.RedisError):
            raise answer
        if isinstance(confirmed, redis.ResponseError):
            needs = "it needs `appendonly yes`."
            raise StoreUnavailable(
                f"CYNOSURE_DURABILITY is fsync, and the job store can't do that ({confirmed}): {needs}"
            ) from confirmed
        if confirmed[0] < 1:
            detail = "The job store's disk did not confirm in time; try again, with an Idempotency-Key."
            raise StoreUnavailable(detail, retry_after_s=5)
        return answer


def _options(settings: StoreSettings, name: str, timeout_s: float) -> dict[str, Any]:
    options: dict[str, Any] = {
        "client_name": name,
        "max_connections": CONNECTIONS,
        "timeout": timeout_s,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": TIMEOUT_S,
        "health_check_interval": int(TIMEOUT_S),
    }
    if settings.password is not None:
        options["password"] = settings.password
    if settings.uses_tls:
        options |= tls_options(settings)
    return options if settings.redis_url.startswith("unix:") else {**options, "socket_keepalive": True}


def tls_options(settings: StoreSettings) -> dict[str, Any]:
    """What both this client and kombu's ask of the store's certificate: that it is valid, and for this very name."""
    options: dict[str, Any] = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    return options | ({"ssl_ca_certs": str(settings.redis_ca_file)} if settings.redis_ca_file else {})
