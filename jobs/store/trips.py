"""Calls of many coroutines that share round trips to the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import redis.asyncio
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError

from jobs.store.scripts import call_of
from jobs.store.timing import Observe, name_of, unobserved

_MOST_CALLS = 256  # in one trip, so that none waits for thousands of others


class SharedTrips:
    """Sends calls to the store that arrive while others are under way together, in one round trip.

    A call that comes alone goes at once. Calls are made in the order in which they came. One that the store refuses
    fails alone; if the connection breaks, all calls of the trip are repeated, as single ones would be.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._observe: Observe = getattr(client, "observe", unobserved)
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._travelling: asyncio.Task[None] | None = None

    def call(self, *command: Any) -> asyncio.Future[Any]:
        """Make a call.

        Raises:
            RedisError: when it is awaited: the store refused it, or is away.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, answer))
        if self._travelling is None:
            self._travelling = asyncio.create_task(self._travel())
        return answer

    async def run(self, script: AsyncScript, keys: Sequence[str], args: Sequence[str | int | float]) -> Any:
        """Run a script.

        Raises:
            RedisError: the store refused it, or is away.
        """
        started = time.perf_counter()
        command = ("EVALSHA", *call_of(script, keys, args))
        try:
            return await self.call(*command)
        except NoScriptError:  # the store was restarted, or is another one
            await self.call("SCRIPT LOAD", script.script)
            return await self.call(*command)
        finally:
            self._observe(name_of(script.sha), time.perf_counter() - started)

    async def _travel(self) -> None:
        try:
            while self._waiting:
                calls, self._waiting = self._waiting[:_MOST_CALLS], self._waiting[_MOST_CALLS:]
                await self._trip(calls)
        finally:
            self._travelling = None

    async def _trip(self, calls: Sequence[tuple[tuple[Any, ...], asyncio.Future[Any]]]) -> None:
        try:
            async with self._client.pipeline(transaction=False) as pipe:
                for command, _ in calls:
                    pipe.execute_command(*command)
                answers = await pipe.execute(raise_on_error=False)
        except Exception as error:  # whatever it is, the callers learn of it as from a call of their own
            answers = [error] * len(calls)
        except BaseException:  # the gateway is ending
            for _, waiting in calls:
                waiting.cancel()
            raise
        for (_, waiting), answer in zip(calls, answers, strict=True):
            if waiting.done():  # its caller has gone
                continue
            if isinstance(answer, Exception):
                waiting.set_exception(answer)
            else:
                waiting.set_result(answer)
