"""How much of the service one key may use: requests a second, pictures and network evaluations a day."""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import redis.asyncio

from cynosure.errors import QuotaExceeded, RateLimited
from jobs.settings import StoreSettings
from jobs.store.answering import answering
from jobs.store.connection import StoreClient
from jobs.store.scripts import script

_DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one key; `None` where there is none.

    Attributes:
        requests_per_s: steady rate; a bucket of `burst` tokens fills at it.
        burst: requests that may come at once.
        pictures_per_day: accepted pictures in a day of UTC.
        evaluations_per_day: accepted evaluations of the network (steps × pictures) in a day of UTC.
    """

    requests_per_s: float | None = None
    burst: int = 1
    pictures_per_day: int | None = None
    evaluations_per_day: int | None = None

    @property
    def has_quota(self) -> bool:
        return self.pictures_per_day is not None or self.evaluations_per_day is not None


UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class Taken:
    """A request let through; `left` more may follow at once, and one more `reset_s` from now."""

    limits: Limits
    left: int
    reset_s: int

    @property
    def headers(self) -> dict[str, str]:
        """As in draft-ietf-httpapi-ratelimit-headers-10: the bucket and how long it takes to fill, what is left."""
        rate = self.limits.requests_per_s or 1.0
        window_s = max(1, math.ceil(self.limits.burst / rate))
        return {
            "RateLimit-Policy": f'"requests";q={self.limits.burst};w={window_s}',
            "RateLimit": f'"requests";r={self.left};t={self.reset_s}',
        }


class Bill:
    """What a job was counted as; it is taken off again unless it `stands`."""

    def __init__(self) -> None:
        self.stands = False


class Allowance(StoreClient):
    """Counts in Redis, so that all gateways count as one. Raises `StoreUnavailable` where it is away."""

    def __init__(self, client: redis.asyncio.Redis, settings: StoreSettings) -> None:
        super().__init__(client, settings)
        self._take, self._charge = (client.register_script(script(name)) for name in ("take", "charge"))

    async def take(self, owner: str, limits: Limits) -> Taken | None:
        """Count a request of `owner`; `None` where it has no limit.

        Raises:
            RateLimited: too many came.
        """
        if limits.requests_per_s is None:
            return None
        async with answering():
            taken, left, wait_ms = await self._take(
                keys=[self._keys.bucket(owner)], args=[limits.requests_per_s, limits.burst]
            )
        reset_s = math.ceil(wait_ms / 1000)
        if not taken:
            raise RateLimited(
                f"This key may make {limits.requests_per_s:g} requests a second, {limits.burst} at once.",
                retry_after_s=max(1, reset_s),
            )
        return Taken(limits, left, reset_s)

    @asynccontextmanager
    async def charged(self, owner: str, limits: Limits, pictures: int, evaluations: int) -> AsyncIterator[Bill]:
        """Count a job onto the owner's day, and take it off again unless the bill stands at the end.

        Raises:
            QuotaExceeded: the day has less left than the job takes.
        """
        bill, day = Bill(), datetime.now(UTC)
        if not limits.has_quota:
            yield bill
            return
        await self._count(owner, day, limits, pictures, evaluations)
        try:
            yield bill
        finally:
            if not bill.stands:
                await self._count(owner, day, limits, -pictures, -evaluations)

    async def _count(self, owner: str, day: datetime, limits: Limits, pictures: int, evaluations: int) -> None:
        date = day.date().isoformat()
        async with answering():
            answer, left = await self._charge(
                keys=[
                    self._keys.used(owner, date, "pictures"),
                    self._keys.used(owner, date, "evaluations"),
                    self._keys.charge(secrets.token_hex(8)),
                ],
                args=[pictures, evaluations, _text(limits.pictures_per_day), _text(limits.evaluations_per_day)],
            )
        if answer != b"charged":
            asked = pictures if answer == b"pictures" else evaluations
            raise QuotaExceeded(
                f"This key has {left} {answer.decode()} left today (UTC), and the request takes {asked}.",
                retry_after_s=_DAY_S - int(day.timestamp()) % _DAY_S,
            )


def _text(limit: int | None) -> Any:
    return "" if limit is None else limit
