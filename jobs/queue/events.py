"""Waking coroutines when something happens to a job, and telling threads which jobs have ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis
import redis.asyncio
from redis.client import PubSub

from jobs.queue.background import end
from jobs.settings import StoreSettings
from jobs.store.connection import connect_async
from jobs.store.keyspace import Keys

_RECONNECT_S = 0.5
_POLL_S = 1.0
_PING_AFTER_S = 5.0
_LOOKS_PER_S = 250.0
"""Of all followers of jobs together: a twentieth of a core on a quick CPU."""
_REMEMBERED = 1024
"""Latest ends of jobs, for those who looked at their job a moment before they wait for it."""


class JobNews:
    """One Redis subscription for all coroutines of this process that wait for a job.

    It only wakes them. Each then reads the record and its event stream, and polls them as well, so a lost message
    costs time and nothing else.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._channels = (keys.finished, keys.moved)
        self._waiting: dict[tuple[str, str], set[asyncio.Event]] = {}
        self._ended: dict[str, None] = {}  # oldest first
        self._followers = 0
        self.is_closing = False

    @property
    def look_s(self) -> float:
        """Seconds after which a follower looks at its job although it was not woken; longer if there are thousands."""
        return max(_POLL_S, self._followers / _LOOKS_PER_S)

    def hang_up(self) -> None:
        """Wake every waiter, for good: the process is about to end, and none may wait any longer."""
        self.is_closing = True
        self._wake_all()

    def _wake_all(self) -> None:
        for events in self._waiting.values():
            for event in events:
                event.set()

    @classmethod
    @asynccontextmanager
    async def listen(cls, settings: StoreSettings) -> AsyncIterator[JobNews]:
        news = cls(Keys(settings.key_prefix))
        client = connect_async(settings, "cynosure-events")
        listener = asyncio.create_task(news._listen(client))
        try:
            yield news
        finally:
            await end(listener)
            await client.aclose()

    @asynccontextmanager
    async def of(self, job_id: str, *, every_event: bool = False) -> AsyncIterator[asyncio.Event]:
        """Yield an event that is set when the job finishes and, with `every_event`, at each of its events.

        It is set from the start if the job has ended a moment ago. For the other events, enter before reading the job,
        so that nothing is missed.
        """
        event = asyncio.Event()
        if job_id in self._ended:
            event.set()
        channels = (self._keys.finished, self._keys.moved) if every_event else (self._keys.finished,)
        topics = [(channel, job_id) for channel in channels]
        for topic in topics:
            self._waiting.setdefault(topic, set()).add(event)
        self._followers += every_event
        try:
            yield event
        finally:
            self._followers -= every_event
            for topic in topics:
                self._waiting[topic].discard(event)
                if not self._waiting[topic]:
                    del self._waiting[topic]

    async def _listen(self, client: redis.asyncio.Redis) -> None:
        while True:
            try:
                async with client.pubsub() as subscription:
                    await subscription.subscribe(*self._channels)
                    await self._pass_on(subscription)
            except redis.RedisError:
                await asyncio.sleep(_RECONNECT_S)

    async def _pass_on(self, subscription: redis.asyncio.client.PubSub) -> None:
        """Wake the waiters. Returns when the connection has been silent too long (half-open TCP)."""
        silent_s = 0.0
        while silent_s < 2 * _PING_AFTER_S:
            message = await subscription.get_message(timeout=_POLL_S)
            if message is None:
                silent_s += _POLL_S
                if silent_s == _PING_AFTER_S:
                    await subscription.ping()
                continue
            silent_s = 0.0
            if message["type"] == "subscribe" and message["data"] == len(self._channels):
                self._wake_all()  # messages may have been missed before the subscription
            if message["type"] == "message":
                self._tell(message["channel"].decode(), message["data"].decode())

    def _tell(self, channel: str, job_id: str) -> None:
        if channel == self._keys.finished:
            self._ended[job_id] = None
            if len(self._ended) > _REMEMBERED:
                del self._ended[next(iter(self._ended))]
        for event in self._waiting.get((channel, job_id), ()):
            event.set()


class Endings:
    """Ids of jobs as they end; those that end while the connection is broken are missed."""

    def __init__(self, subscription: PubSub) -> None:
        self._subscription = subscription

    def next(self, *, timeout_s: float) -> str | None:
        """The next id, or `None` if none comes in time."""
        message = self._subscription.get_message(timeout=timeout_s)
        return message["data"].decode() if message else None
