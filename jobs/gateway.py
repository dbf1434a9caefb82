"""The parts of the store that a gateway needs, over two connection pools."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from jobs.accounts.allowance import Allowance
from jobs.accounts.api_keys import KeyRing
from jobs.accounts.links import LinkSigner
from jobs.batches import Batches
from jobs.fleet import Fleet
from jobs.metrics import Metrics
from jobs.plans import Inquiries
from jobs.queue.events import JobNews
from jobs.queue.gateway import JobStore
from jobs.queue.listing import Listing
from jobs.queue.pace import Seen
from jobs.queue.vitals import Vitals
from jobs.roster import Roster
from jobs.sessions import Sessions
from jobs.settings import StoreSettings
from jobs.store.connection import connected
from jobs.webhooks import Webhooks

ANSWER_S = 30.0  # longer than any caller waits for a plan


@dataclass(frozen=True)
class Store:
    """The parts of the store that a gateway needs.

    Attributes:
        jobs: records, pictures, places in the queue.
        listing: each owner's jobs, by page.
        vitals: how the queues and the store itself are.
        news: wakes those who wait for a job.
        plans: questions that a worker answers.
        fleet: the workers' model cards.
        roster: the models that workers are to load and unload.
        api_keys: API keys and the callers they identify.
        sessions: what is remembered of callers between requests.
        links: signatures of links to pictures.
        allowance: rate limits and daily quotas.
        batches: uploads of many requests.
        webhooks: deliveries of jobs' ends.
    """

    jobs: JobStore
    listing: Listing
    vitals: Vitals
    news: JobNews
    plans: Inquiries
    fleet: Fleet
    roster: Roster
    api_keys: KeyRing
    sessions: Sessions
    links: LinkSigner
    allowance: Allowance
    batches: Batches
    webhooks: Webhooks

    @classmethod
    @asynccontextmanager
    async def connect(cls, settings: StoreSettings, metrics: Metrics | None = None) -> AsyncIterator[Store]:
        """Open the connections: one pool for short calls, one for calls that block; `metrics` count what is done."""
        metrics = metrics or Metrics()
        async with (
            connected(settings, "cynosure-gateway", observe=metrics.store_answered) as client,
            connected(settings, "cynosure-gateway-plans", timeout_s=ANSWER_S) as waiting,
            JobNews.listen(settings) as news,
        ):
            yield cls(
                jobs=JobStore(client, settings, metrics),
                listing=Listing(client, settings),
                vitals=Vitals(client, settings),
                news=news,
                plans=Inquiries(waiting, settings),
                fleet=Fleet(client, settings),
                roster=Roster(client, settings),
                api_keys=KeyRing(client, settings),
                sessions=Sessions(client, settings),
                links=LinkSigner(client, settings),
                allowance=Allowance(client, settings),
                batches=Batches(client, settings),
                webhooks=Webhooks(client, settings),
            )

    async def look(self, job_id: str, viewer: str) -> Seen:
        """`jobs.look`, as `foreseen`.

        Raises:
            JobExpired, JobNotFound, StoreUnavailable: as `jobs.get`.
        """
        return await self.foreseen(await self.jobs.look(job_id, viewer))

    async def foreseen(self, seen: Seen) -> Seen:
        """The same without a time for a job that no worker is there to draw.

        Raises:
            StoreUnavailable: Redis is away.
        """
        if seen.outlook.eta_seconds is None:
            return seen
        holders = (await self.fleet.workers()).by_model
        if holders.get(seen.record.model or seen.record.request.model) != 0:
            return seen
        return replace(seen, outlook=replace(seen.outlook, eta_seconds=None))
