"""Hearing of jobs as they end."""

from __future__ import annotations

from redis.client import PubSub


class Endings:
    """Ids of jobs as they end; those that end while the connection is broken are missed."""

    def __init__(self, subscription: PubSub) -> None:
        self._subscription = subscription

    def next(self, *, timeout_s: float) -> str | None:
        """The next id, or `None` if none comes in time."""
        message = self._subscription.get_message(timeout=timeout_s)
        return message["data"].decode() if message else None
