"""The gateway as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app.gateway import problems
from app.gateway.auth import Door
from app.gateway.feeder import Feeder
from app.gateway.limits import BodyLimit
from app.gateway.routes import batches as batch_routes
from app.gateway.routes import events, generate, health, images, jobs, models, openai, plan, sweeps
from app.gateway.settings import GatewaySettings
from app.gateway.state import State
from app.jobs.allowance import Allowance
from app.jobs.api_keys import KeyRing
from app.jobs.batches import Batches
from app.jobs.doorbell import Doorbell
from app.jobs.events import JobNews
from app.jobs.fleet import Fleet
from app.jobs.inquiries import Inquiries
from app.jobs.listing import Listing
from app.jobs.settings import StoreSettings
from app.jobs.store import JobStore
from cynosure import __version__
from cynosure.contract import Problem


def create_app(settings: GatewaySettings, store_settings: StoreSettings) -> FastAPI:
    """Build the gateway; connections open when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        doorbell = Doorbell(store_settings)
        async with (
            JobStore.connect(store_settings) as store,
            Fleet.connect(store_settings) as fleet,
            JobNews.listen(store_settings) as news,
            Inquiries.connect(store_settings) as inquiries,
            KeyRing.connect(store_settings) as api_keys,
            Listing.connect(store_settings) as listing,
            Allowance.connect(store_settings) as allowance,
            Batches.connect(store_settings) as batches,
        ):
            state = State(
                settings=settings,
                store=store,
                fleet=fleet,
                news=news,
                inquiries=inquiries,
                doorbell=doorbell,
                api_keys=api_keys,
                listing=listing,
                allowance=allowance,
                batches=batches,
            )
            feeding = asyncio.create_task(Feeder(state).run(), name="feeder")
            try:
                yield state
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)
        doorbell.close()

    app = FastAPI(title="Cynosure", version=__version__, summary="Guided diffusion as a service.", lifespan=lifespan)
    problems.install(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, larger={"/batches": settings.max_batch_bytes})
    app.add_middleware(Door)  # the last one added comes first
    app.include_router(health.router)
    for module in (generate, sweeps, plan, jobs, events, images, models, openai, batch_routes):
        app.include_router(module.router, responses={401: {"model": Problem}, 403: {"model": Problem}})
    return app
