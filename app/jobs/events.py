"""Being told when a job finishes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis
import redis.asyncio

from app.jobs.keys import Keys
from app.jobs.settings import StoreSettings

_RECONNECT_S = 0.5


class FinishedEvents:
    """One subscription for everyone who waits in this process."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    @classmethod
    @asynccontextmanager
    async def listen(cls, settings: StoreSettings) -> AsyncIterator[FinishedEvents]:
        events = cls()
        client = redis.asyncio.Redis.from_url(settings.redis_url, client_name="cynosure-events")
        listener = asyncio.create_task(events._listen(client, Keys(settings.key_prefix).finished))
        try:
            yield events
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)
            await client.aclose()

    @asynccontextmanager
    async def of(self, job_id: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set when the job finishes. Enter before looking at the job, so that nothing is missed."""
        event = asyncio.Event()
        self._waiting.setdefault(job_id, set()).add(event)
        try:
            yield event
        finally:
            self._waiting[job_id].discard(event)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def _listen(self, client: redis.asyncio.Redis, channel: str) -> None:
        while True:
            try:
                async with client.pubsub(ignore_subscribe_messages=True) as subscription:
                    await subscription.subscribe(channel)
                    async for message in subscription.listen():
                        for event in self._waiting.get(message["data"].decode(), ()):
                            event.set()
            except redis.RedisError:
                await asyncio.sleep(_RECONNECT_S)  # whoever waits polls as well, and sees what was missed
