"""Connections that follow the store's master: behind an address that moves, or as Sentinels name it."""

from __future__ import annotations

import re
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.exceptions import ReadOnlyError

_MOVED = "this server has become a replica"


class MasterConnection(redis.Connection):
    """For threads, over TCP. It is given up once its server says that it is a replica: the master is elsewhere now."""

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except ReadOnlyError as error:
            self.disconnect()  # type: ignore[no-untyped-call]
            raise redis.ConnectionError(_MOVED) from error


class MasterSSLConnection(MasterConnection, redis.SSLConnection):
    """For threads, over TLS."""


class AsyncMasterConnection(redis.asyncio.Connection):
    """For coroutines, over TCP."""

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except ReadOnlyError as error:
            await self.disconnect()
            raise redis.ConnectionError(_MOVED) from error


class AsyncMasterSSLConnection(AsyncMasterConnection, redis.asyncio.SSLConnection):
    """For coroutines, over TLS."""


class SentinelConnection(redis.sentinel.SentinelManagedConnection):
    """For threads, to the master that Sentinels name at that moment, over TCP.

    The library's own, if it was cut between two commands, goes back to the server that it knows: perhaps a dead master
    that was just started again, and takes writes until the Sentinels see it.
    """

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if not self._sock:
            self.connect()  # type: ignore[no-untyped-call]
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]


class SentinelSSLConnection(SentinelConnection, redis.SSLConnection):
    """For threads, over TLS."""


class AsyncSentinelConnection(redis.asyncio.sentinel.SentinelManagedConnection):
    """For coroutines, over TCP."""

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if not self.is_connected:
            await self.connect()  # type: ignore[no-untyped-call]
        await super().send_packed_command(command, check_health)


class AsyncSentinelSSLConnection(AsyncSentinelConnection, redis.asyncio.SSLConnection):
    """For coroutines, over TLS."""


class Sentinels(redis.sentinel.Sentinel):
    """For threads. Unlike the library, says in a few words why none of them names a master."""

    def discover_master(self, service_name: str) -> tuple[str, int]:
        try:
            found: tuple[str, int] = super().discover_master(service_name)  # type: ignore[no-untyped-call]
        except redis.sentinel.MasterNotFoundError as error:
            raise redis.sentinel.MasterNotFoundError(_in_short(service_name, error)) from None
        return found


class AsyncSentinels(redis.asyncio.sentinel.Sentinel):
    """The same for coroutines."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        try:
            found: tuple[str, int] = await super().discover_master(service_name)
        except redis.asyncio.sentinel.MasterNotFoundError as error:
            raise redis.asyncio.sentinel.MasterNotFoundError(_in_short(service_name, error)) from None
        return found


class SentinelPool(redis.sentinel.SentinelConnectionPool, redis.BlockingConnectionPool):
    """For threads: `SentinelConnection`s; a further one than the most waits."""

    def __init__(self, service: str, sentinels: Sentinels, *, ssl: bool, **options: Any) -> None:
        options["connection_class"] = SentinelSSLConnection if ssl else SentinelConnection
        super().__init__(service, sentinels, **options)  # type: ignore[no-untyped-call]

    def disconnect(self, inuse_connections: bool = True) -> None:
        super().disconnect(inuse_connections)
        if inuse_connections:  # otherwise the master has only moved
            self.sentinel_manager.close()


class AsyncSentinelPool(redis.asyncio.sentinel.SentinelConnectionPool, redis.asyncio.BlockingConnectionPool):
    """The same for coroutines."""

    def __init__(self, service: str, sentinels: AsyncSentinels, *, ssl: bool, **options: Any) -> None:
        options["connection_class"] = AsyncSentinelSSLConnection if ssl else AsyncSentinelConnection
        super().__init__(service, sentinels, **options)  # type: ignore[no-untyped-call]

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:
            await self.sentinel_manager.aclose()


def _in_short(service: str, error: Exception) -> str:
    """The library's message shows each of its clients with all options."""
    causes = re.findall(r"\bhost=([^,]+),port=(\d+)(?:(?!\bhost=).)*> - ([\w:]+)", str(error))
    told = ", ".join(f"{host}:{port} {cause}" for host, port, cause in causes)
    return f"no Sentinel names a master of '{service}'" + (f": {told}" if told else "")
