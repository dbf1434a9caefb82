"""The state that the lifespan builds and the routes use."""

from __future__ import annotations

from typing import Annotated, TypedDict, cast

from fastapi import Depends, Request

from app.gateway.metrics.meters import GatewayMetrics
from app.gateway.outbound import Outbound
from app.gateway.settings import GatewaySettings
from jobs.gateway import Store


class State(TypedDict):
    """One gateway's connections and settings."""

    settings: GatewaySettings
    store: Store
    outbound: Outbound
    metrics: GatewayMetrics


async def _state(request: Request) -> State:
    return cast(State, request.scope["state"])


StateDep = Annotated[State, Depends(_state)]
