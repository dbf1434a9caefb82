"""Connections to the store that survive its restarts, fail-overs, moves to another address and broken networks."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar, Self, cast

import redis
import redis.asyncio
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError

from cynosure.errors import StoreUnavailable
from jobs.settings import StoreSettings
from jobs.starting import InvalidSettings
from jobs.store.answering import IS_CLUSTER
from jobs.store.keyspace import Keys
from jobs.store.masters import (
    AsyncMasterConnection,
    AsyncMasterSSLConnection,
    AsyncSentinelPool,
    AsyncSentinels,
    MasterConnection,
    MasterSSLConnection,
    SentinelPool,
    Sentinels,
)
from jobs.store.scripts import call_of
from jobs.store.timing import AsyncTimedRedis, Observe, TimedRedis, unobserved
from jobs.store.trips import SharedTrips

TIMEOUT_S = 5.0  # for an answer; a store that is swapping or saving may take a second
SENTINEL_TIMEOUT_S = 1.0  # they are asked one after the other, and one may be on the machine that was lost
# Retries of a call whose connection broke, with at most 3 s of pauses in all. Every script may run twice; the headers
# of those that count something say what that costs.
RETRIES = 6
CONNECTIONS = 100  # per client; a call that waits for the disk or for an answer occupies one
CONFIRM_TIMEOUT_MS = int(800 * TIMEOUT_S)
"""Shorter than the connection's own timeout, because "not confirmed" is an answer that must arrive."""
_BACKOFF = ExponentialWithJitterBackoff(base=0.05, cap=1.0)


def connect(
    settings: StoreSettings, name: str, *, timeout_s: float = TIMEOUT_S, observe: Observe = unobserved
) -> redis.Redis:
    """A client for threads. The store lists it by `name`; `timeout_s` is longer than any of its calls may block.

    `observe` is called for every script that is run, outside pipelines.

    The host name is resolved again, or the Sentinels are asked again, for every connection, so the store may move. If
    `CONNECTIONS` calls are under way, a further one waits for a connection, for `timeout_s` at most.
    """
    client = cast(TimedRedis, TimedRedis.from_pool(_pool(settings, _options(settings, name, timeout_s))))
    client.observe = observe
    return client


def connect_async(
    settings: StoreSettings, name: str, *, timeout_s: float = TIMEOUT_S, observe: Observe = unobserved
) -> redis.asyncio.Redis:
    """The same as `connect`, for coroutines."""
    pool = _async_pool(settings, _options(settings, name, timeout_s))
    client = cast(AsyncTimedRedis, AsyncTimedRedis.from_pool(pool))
    client.observe = observe
    return client


def _pool(settings: StoreSettings, options: dict[str, Any]) -> redis.ConnectionPool:
    options["retry"] = redis.retry.Retry(_BACKOFF, RETRIES)
    if (address := settings.sentinels) is None:
        if not settings.redis_url.startswith("unix:"):
            options["connection_class"] = MasterSSLConnection if settings.uses_tls else MasterConnection
        return redis.BlockingConnectionPool.from_url(settings.redis_url, **options)
    asked = sentinel_options(settings) | {"retry": redis.retry.Retry(NoBackoff(), 0)}  # there are others to ask
    sentinels = Sentinels(address.hosts, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
    return SentinelPool(address.service, sentinels, **options)


def _async_pool(settings: StoreSettings, options: dict[str, Any]) -> redis.asyncio.ConnectionPool:
    options["retry"] = redis.asyncio.retry.Retry(_BACKOFF, RETRIES)
    if (address := settings.sentinels) is None:
        if not settings.redis_url.startswith("unix:"):
            options["connection_class"] = AsyncMasterSSLConnection if settings.uses_tls else AsyncMasterConnection
        return redis.asyncio.BlockingConnectionPool.from_url(settings.redis_url, **options)
    asked = sentinel_options(settings) | {"retry": redis.asyncio.retry.Retry(NoBackoff(), 0)}
    sentinels = AsyncSentinels(address.hosts, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
    return AsyncSentinelPool(address.service, sentinels, **options)


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


def refuse_cluster(settings: StoreSettings) -> None:
    """Refuse a store whose keys are spread over servers.

    Raises:
        InvalidSettings: it is in cluster mode.
        RedisError: it is away.
    """
    with connect(settings, "cynosure-start") as client, suppress(redis.ResponseError):  # it may not tell everybody
        if client.info("cluster").get("cluster_enabled"):
            raise InvalidSettings(f"REDIS_URL: {IS_CLUSTER}")


class StoreClient:
    """A part of the store, for coroutines. Parts may share a client.

    Attributes:
        timeout_s: longer than any of its calls may block.
    """

    timeout_s: ClassVar[float] = TIMEOUT_S

    def __init__(self, client: redis.asyncio.Redis, settings: StoreSettings) -> None:
        self._client = client
        self._trips = SharedTrips(client)
        self._settings = settings
        self._keys = Keys(settings.key_prefix)

    @classmethod
    @asynccontextmanager
    async def connect(cls, settings: StoreSettings) -> AsyncIterator[Self]:
        """A part with a client of its own, for programs that need no other part."""
        async with connected(settings, "cynosure", timeout_s=cls.timeout_s) as client:
            yield cls(client, settings)

    async def _accepting(self, script: AsyncScript, *, keys: Sequence[str], args: Sequence[str | int]) -> Any:
        """Run a script that accepts something, and return once its writes are as durable as the settings want.

        WAIT and WAITAOF only wait for writes of their own connection. If that connection breaks, both calls are
        repeated on another one, so the script must write something even when it finds that it has already run.

        Raises:
            StoreUnavailable: neither the disk nor a replica, whichever is to, has confirmed. The writes may stand all
                the same.
        """
        durability = self._settings.durability
        if durability == "relaxed":
            return await self._trips.run(script, keys, args)
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.evalsha(*call_of(script, keys, args))
            if durability == "fsync":
                pipe.waitaof(1, 0, CONFIRM_TIMEOUT_MS)
            else:
                pipe.wait(1, CONFIRM_TIMEOUT_MS)
            answer, confirmed = await pipe.execute(raise_on_error=False)
        if isinstance(answer, NoScriptError):  # the store was restarted, or is another one
            await self._client.script_load(script.script)
            return await self._accepting(script, keys=keys, args=args)
        if isinstance(answer, redis.RedisError):
            raise answer
        if isinstance(confirmed, redis.ResponseError):
            remedy = ": set `appendonly yes` in its configuration." if durability == "fsync" else "."
            raise StoreUnavailable(
                f"CYNOSURE_DURABILITY is {durability}, and the job store can't do that ({confirmed}){remedy}"
            ) from confirmed
        if (confirmed[0] if durability == "fsync" else confirmed) < 1:
            which = "The job store's disk" if durability == "fsync" else "No replica of the job store"
            did = "did not confirm" if durability == "fsync" else "confirmed"
            raise StoreUnavailable(f"{which} {did} in time; try again, with an Idempotency-Key.", retry_after_s=5)
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
    if (address := settings.sentinels) is not None:
        options |= {"db": address.database, "username": address.user, "password": address.password}
        options |= {"ssl": settings.uses_tls}
    if settings.password is not None:
        options["password"] = settings.password
    if settings.uses_tls:
        options |= tls_options(settings)
    return options if settings.redis_url.startswith("unix:") else {**options, "socket_keepalive": True}


def sentinel_options(settings: StoreSettings) -> dict[str, Any]:
    """Options of this client's and kombu's connections to Sentinels."""
    options: dict[str, Any] = {"socket_timeout": SENTINEL_TIMEOUT_S, "socket_connect_timeout": SENTINEL_TIMEOUT_S}
    if settings.sentinel_password is not None:
        options["password"] = settings.sentinel_password
    return options | ({"ssl": True} | tls_options(settings) if settings.uses_tls else {})


def tls_options(settings: StoreSettings) -> dict[str, Any]:
    """TLS options of this client and kombu's: the store's certificate must be valid, and issued for its host name."""
    options: dict[str, Any] = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    return options | ({"ssl_ca_certs": str(settings.redis_ca_file)} if settings.redis_ca_file else {})
