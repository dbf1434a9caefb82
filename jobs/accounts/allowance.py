"""Limits of an API key: requests per second, and pictures and network evaluations per day."""

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
    """The limits of one key; `None` means no limit.

    Attributes:
        requests_per_s: the rate at which a bucket of `burst` tokens refills.
        burst: requests that may come at once.
        pictures_per_day: pictures accepted per UTC day.
        evaluations_per_day: network evaluations (steps × pictures) accepted per UTC day.
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
    """A token taken from the bucket; `left` requests more may follow at once, and the next token comes in `reset_s`."""

    limits: Limits
    left: int
    reset_s: int

    @property
    def headers(self) -> dict[str, str]:
        """Headers of draft-ietf-httpapi-ratelimit-headers-10: size and fill time of the bucket, and tokens left."""
        rate = self.limits.requests_per_s or 1.0
        window_s = max(1, math.ceil(self.limits.burst / rate))
        return {
            "RateLimit-Policy": f'"requests";q={self.limits.burst};w={window_s}',
            "RateLimit": f'"requests";r={self.left};t={self.reset_s}',
        }


class Bill:
    """A job's charge against the quotas; it is refunded unless it `stands`."""

    def __init__(self) -> None:
        self.stands = False


class Allowance(StoreClient):
    """Counts in Redis, which all gateways share. Every method raises `StoreUnavailable` if it is away."""

    def __init__(self, client: redis.asyncio.Redis, settings: StoreSettings) -> None:
        super().__init__(client, settings)
        self._take, self._charge = (client.register_script(script(name)) for name in ("take", "charge"))

    async def take(self, owner: str, limits: Limits) -> Taken | None:
        """Count a request of `owner`; `None` if it has no rate limit.

        Raises:
            RateLimited: the bucket is empty.
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
                f"This key may make {limits.requests_per_s:g} requests a second, and {limits.burst} at once.",
                retry_after_s=max(1, reset_s),
            )
        return Taken(limits, left, reset_s)

    @asynccontextmanager
    async def charged(self, owner: str, limits: Limits, pictures: int, evaluations: int) -> AsyncIterator[Bill]:
        """Charge a job to the owner's quotas of the day, and refund it unless the bill stands at the end.

        Raises:
            QuotaExceeded: a quota has less left than the job needs.
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
            needed = pictures if answer == b"pictures" else evaluations
            raise QuotaExceeded(
                f"This key has {left} {answer.decode()} left today (UTC), and the request needs {needed}.",
                retry_after_s=_DAY_S - int(day.timestamp()) % _DAY_S,
            )


def _text(limit: int | None) -> Any:
    return "" if limit is None else limit
