"""Webhooks: deliveries of jobs' ends, and the outcome of each. Kept in Redis, so that a restart loses none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis.asyncio

from cynosure.errors import WebhookNotFound
from cynosure.webhooks import DeliveryStatus
from jobs.queue.record import may_see
from jobs.settings import StoreSettings
from jobs.store.answering import answering
from jobs.store.connection import StoreClient
from jobs.store.scripts import script

_SCRIPTS = ("settle", "take", "note", "replay")
MARGIN_S = 60.0
"""Added to the time of the call itself: to read the job before it and to record the outcome after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One job's webhook; times in milliseconds of the Redis server's clock."""

    job_id: str
    owner: str
    url: str
    body: str
    status: DeliveryStatus
    attempts: int
    http_status: int | None
    error: str | None
    attempted_ms: int | None
    next_ms: int | None
    traceparent: str


class Webhooks(StoreClient):
    """The store of deliveries. Every method raises `StoreUnavailable` if Redis is away."""

    def __init__(self, client: redis.asyncio.Redis, settings: StoreSettings) -> None:
        super().__init__(client, settings)
        self._ttl_s = settings.result_ttl_s + settings.tombstone_ttl_s
        self._run = {name: client.register_script(script(f"webhook_{name}")) for name in _SCRIPTS}

    async def settle(self) -> int:
        """Make the webhooks of jobs that have ended due; returns the number of deliveries that are due now."""
        keys = [self._keys.watched, self._keys.webhooks_due]
        async with answering():
            return int(await self._run["settle"](keys=keys, args=[self._keys.job(""), self._ttl_s]))

    async def take(self, count: int, *, call_s: float) -> list[str]:
        """Lease up to `count` due deliveries, each for one attempt of at most `call_s` seconds; returns job ids."""
        lease_ms = int(1000 * (call_s + MARGIN_S))
        async with answering():
            raw: Any = await self._run["take"](keys=[self._keys.webhooks_due], args=[count, lease_ms])
        return [job_id.decode() for job_id in raw]

    async def get(self, job_id: str, viewer: str) -> Delivery:
        """The delivery, if `viewer` (an owner or `EVERYONE`) may see it.

        Raises:
            WebhookNotFound: the job has none, has not ended, or belongs to another owner.
        """
        async with answering():
            fields: Any = await self._client.hgetall(self._keys.webhook(job_id))
        delivery = _decoded(job_id, fields) if fields else None
        if delivery is None or not may_see(viewer, delivery.owner):
            raise WebhookNotFound(f"No webhook was sent for job '{job_id}': it has none, or it has not ended yet.")
        return delivery

    async def begin(self, job_id: str, owner: str, url: str, body: str, traceparent: str) -> None:
        """Record what to send, and the span that it belongs to; a delivery that was begun before stays as it is."""
        key = self._keys.webhook(job_id)
        sent = {"owner": owner, "url": url, "body": body, "traceparent": traceparent}
        async with answering(), self._client.pipeline() as pipe:
            for field, value in {**sent, "status": "pending", "attempts": 0}.items():
                pipe.hsetnx(key, field, str(value))
            pipe.expire(key, self._ttl_s)
            await pipe.execute()

    async def note(
        self, job_id: str, status: DeliveryStatus, *, http_status: int | None, error: str, again_s: float = 0.0
    ) -> None:
        """Record the outcome of an attempt, and when the next one is due, if any."""
        keys = [self._keys.webhook(job_id), self._keys.webhooks_due]
        status_text = "" if http_status is None else http_status
        args: list[Any] = [job_id, status.value, status_text, error, int(again_s * 1000), self._ttl_s]
        async with answering():
            await self._run["note"](keys=keys, args=args)

    async def drop(self, job_id: str) -> None:
        """Forget a delivery whose job is no longer kept."""
        async with answering():
            await self._client.zrem(self._keys.webhooks_due, job_id)

    async def replay(self, job_id: str) -> None:
        """Deliver it again, now, with a fresh set of attempts."""
        keys = [self._keys.webhook(job_id), self._keys.webhooks_due]
        async with answering():
            await self._run["replay"](keys=keys, args=[job_id, self._ttl_s])


def _decoded(job_id: str, fields: Mapping[bytes, bytes]) -> Delivery:
    text = {key.decode(): value.decode() for key, value in fields.items()}

    def number(name: str) -> int | None:
        return int(text[name]) if text.get(name) else None

    return Delivery(
        job_id=job_id,
        owner=text["owner"],
        url=text["url"],
        body=text["body"],
        status=DeliveryStatus(text["status"]),
        attempts=int(text["attempts"]),
        http_status=number("http_status"),
        error=text.get("error") or None,
        attempted_ms=number("attempted_ms"),
        next_ms=number("next_ms"),
        traceparent=text.get("traceparent", ""),
    )
