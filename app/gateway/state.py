"""What the lifespan builds and the routes use."""

from __future__ import annotations

from typing import Annotated, TypedDict, cast

from fastapi import Depends, Request

from app.gateway.outbound import Outbound
from app.gateway.settings import GatewaySettings
from jobs.accounts.allowance import Allowance
from jobs.accounts.api_keys import KeyRing
from jobs.batches import Batches
from jobs.fleet import Fleet
from jobs.plans import Inquiries
from jobs.queue.doorbell import Doorbell
from jobs.queue.events import JobNews
from jobs.queue.gateway import JobStore
from jobs.queue.listing import Listing
from jobs.webhooks import Webhooks


class State(TypedDict):
    """One gateway's connections and settings."""

    settings: GatewaySettings
    store: JobStore
    fleet: Fleet
    news: JobNews
    inquiries: Inquiries
    doorbell: Doorbell
    api_keys: KeyRing
    listing: Listing
    allowance: Allowance
    batches: Batches
    webhooks: Webhooks
    outbound: Outbound


def _state(request: Request) -> State:
    return cast(State, request.scope["state"])


StateDep = Annotated[State, Depends(_state)]
