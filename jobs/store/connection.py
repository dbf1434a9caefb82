"""Connections to the store that survive its restarts, its moves to another address and broken networks."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Self, cast

import redis
import redis.asyncio
from redis.backoff import ExponentialWithJitterBackoff
from redis.commands.core import AsyncScript

from cynosure.errors import StoreUnavailable
from jobs.settings import StoreSettings
from jobs.store.keyspace import Keys
from jobs.store.timing import AsyncTimedRedis, Observe, TimedRedis, unobserved

TIMEOUT_S = 5.0  # for an answer; a store that is swapping or saving may take a second
# Retries of a call whose connection broke, with at most 3 s of pauses in all. Every script may run twice; the headers
# of those that count something say what that costs.
RETRIES = 6
CONNECTIONS = 100  # per client; a call that waits for the disk or for an answer occupies one
FSYNC_TIMEOUT_MS = int(800 * TIMEOUT_S)
"""Shorter than the connection's own timeout, because "not confirmed" is an answer that must arrive."""
_BACKOFF = ExponentialWithJitterBackoff(base=0.05, cap=1.0)


def connect(
    settings: StoreSettings, name: str, *, timeout_s: float = TIMEOUT_S, observe: Observe = unobserved
) -> redis.Redis:
    """A client for threads. The store lists it by `name`; `timeout_s` is longer than any of its calls may block.

    `observe` is called for every script that is run, outside pipelines.

    The host name is resolved again for every connection, so the store may move behind it. If `CONNECTIONS` calls are
    under way, a further one waits for a connection, for `timeout_s` at most.
    """
    retry = redis.retry.Retry(_BACKOFF, RETRIES)
    options = _options(settings, name, timeout_s)
    pool = redis.BlockingConnectionPool.from_url(settings.redis_url, retry=retry, **options)
    client = cast(TimedRedis, TimedRedis.from_pool(pool))
    client.observe = observe
    return client


def connect_async(
    settings: StoreSettings, name: str, *, timeout_s: float = TIMEOUT_S, observe: Observe = unobserved
) -> redis.asyncio.Redis:
    """The same as `connect`, for coroutines."""
    retry = redis.asyncio.retry.Retry(_BACKOFF, RETRIES)
    options = _options(settings, name, timeout_s)
    pool = redis.asyncio.BlockingConnectionPool.from_url(settings.redis_url, retry=retry, **options)
    client = cast(AsyncTimedRedis, AsyncTimedRedis.from_pool(pool))
    client.observe = observe
    return client


@asynccontextmanager
async def connected(
    settings: StoreSettings, name: str, *, timeout_s: float = TIMEOUT_S, observe: Observe = unobserved
) -> AsyncIterator[redis.asyncio.Redis]:
    """A client for coroutines, closed at the end."""
    client = connect_async(settings, name, timeout_s=timeout_s, observe=observe)
    try:
        yield client
    finally:
        await client.aclose()


class StoreClient:
    """A part of the store, for coroutines. Parts may share a client.

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
        """A part with a client of its own, for programs that need no other part."""
        async with connected(settings, "cynosure", timeout_s=cls.timeout_s) as client:
            yield cls(client, settings)

    async def _accepting(self, script: AsyncScript, *, keys: Sequence[str], args: Sequence[str | int]) -> Any:
        """Run a script that accepts something; with durability `fsync`, return once its writes are on disk.

        WAITAOF only waits for writes of its own connection. If that connection breaks, both calls are repeated on
        another one, so the script must write something even when it finds that it has already run.

        Raises:
            StoreUnavailable: the disk did not confirm, or not in time. The writes may stand all the same.
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
            remedy = "set `appendonly yes` in its configuration."
            raise StoreUnavailable(
                f"CYNOSURE_DURABILITY is fsync, and the job store can't do that ({confirmed}): {remedy}"
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
    """TLS options of this client and kombu's: the store's certificate must be valid, and issued for its host name."""
    options: dict[str, Any] = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    return options | ({"ssl_ca_certs": str(settings.redis_ca_file)} if settings.redis_ca_file else {})
