"""What the lifespan builds and the routes use."""

from __future__ import annotations

from typing import Annotated, TypedDict, cast

from fastapi import Depends, Request

from app.gateway.settings import GatewaySettings
from app.jobs.allowance import Allowance
from app.jobs.api_keys import KeyRing
from app.jobs.batches import Batches
from app.jobs.doorbell import Doorbell
from app.jobs.events import JobNews
from app.jobs.fleet import Fleet
from app.jobs.inquiries import Inquiries
from app.jobs.listing import Listing
from app.jobs.outbound import Outbound
from app.jobs.store import JobStore
from app.jobs.webhooks import Webhooks


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
