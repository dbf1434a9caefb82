"""Clients of Redis that report how long scripts take."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import redis
import redis.asyncio

from jobs.store.scripts import every_script

Observe = Callable[[str, float], None]
"""Called with a script's name and the seconds until its answer, or its error."""


def unobserved(script: str, seconds: float) -> None:
    """An `Observe` that does nothing."""


@cache
def _names() -> Mapping[str, str]:
    """The scripts' names by the digests that the store knows them by."""
    return {
        hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(): name for name, text in every_script().items()
    }


def name_of(digest: str) -> str:
    """The name of the script that the store knows by this digest."""
    return _names()[digest]


def _script_in(command: tuple[Any, ...]) -> str | None:
    return _names().get(command[1]) if command[0] == "EVALSHA" else None


class TimedRedis(redis.Redis):
    """For threads. Scripts in pipelines are not timed: they have no time of their own."""

    observe: Observe = staticmethod(unobserved)

    def execute_command(self, *args: Any, **options: Any) -> Any:
        name = _script_in(args)
        if name is None:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        started = time.perf_counter()
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        finally:
            self.observe(name, time.perf_counter() - started)


class AsyncTimedRedis(redis.asyncio.Redis):
    """The same for coroutines."""

    observe: Observe = staticmethod(unobserved)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        name = _script_in(args)
        if name is None:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        started = time.perf_counter()
        try:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        finally:
            self.observe(name, time.perf_counter() - started)
