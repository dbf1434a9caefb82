"""The gateway as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.middleware.cors import CORSMiddleware

from app.gateway import schema
from app.gateway.a1111 import lacking as a1111_lacking
from app.gateway.a1111 import routes as a1111
from app.gateway.admin import models as admin_models
from app.gateway.admin import workers as admin_workers
from app.gateway.batches import routes as batch_routes
from app.gateway.batches.feeder import Feeder
from app.gateway.door.auth import Door
from app.gateway.door.complexity import PartLimit
from app.gateway.door.encoding import Decompressed
from app.gateway.door.limits import BodyLimit
from app.gateway.door.proxies import ProxyHeaders
from app.gateway.door.query import refuse_unknown
from app.gateway.door.request_ids import RequestIds
from app.gateway.errors import problems
from app.gateway.errors.problems import REQUEST_ID
from app.gateway.headers import SecurityHeaders
from app.gateway.metrics.meters import GatewayMetrics
from app.gateway.metrics.middleware import Measured
from app.gateway.openai import routes as openai
from app.gateway.outbound import Outbound, OutboundSettings
from app.gateway.replicate import routes as replicate
from app.gateway.replicate.work import webhook_body
from app.gateway.routes import (
    docs,
    events,
    generate,
    health,
    images,
    jobs,
    metrics,
    models,
    plan,
    status,
    sweeps,
)
from app.gateway.routes.polls import Polls
from app.gateway.settings import GatewaySettings
from app.gateway.state import State
from app.gateway.streams import HeadAsGet, NoticeHangUps
from app.gateway.studio import routes as studio
from app.gateway.webhooks import routes as webhook_routes
from app.gateway.webhooks.deliverer import Deliverer, job_event
from cynosure import __version__
from jobs import traces
from jobs.gateway import Store
from jobs.queue.background import end
from jobs.settings import StoreSettings

CORS: dict[str, Any] = {
    "allow_methods": ("GET", "POST", "DELETE"),
    "allow_headers": ("*",),  # OpenAI's JavaScript client sends a dozen of its own, x-stainless-…
    "expose_headers": ("Location", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Cynosure-Seed", REQUEST_ID),
}
"""For the origins in the settings; without credentials, because a page must set the API key as a header itself."""


@asynccontextmanager
async def _at_work(state: State) -> AsyncIterator[None]:
    """Run the gateway's background work: it feeds batches and delivers webhooks."""
    work = [Feeder(state).run()]
    if (secret := state["settings"].webhook_secret) is not None:
        formats = {"job": job_event, "prediction": webhook_body}
        work.append(Deliverer(state, secret.get_secret_value(), formats).run())
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            await end(task)


def _telemetry() -> TelemetryConfig:
    """FastAPI's own spans of requests, if there is a collector; not of the parts inside, nor of probes."""
    return {
        "tracer_provider": traces.tracer_provider(),
        "tracing": traces.tracer_provider() is not None,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": lambda scope: scope["path"] in ("/healthz", "/readyz"),
    }


def create_app(settings: GatewaySettings, store_settings: StoreSettings, *, metrics_port: int | None = None) -> FastAPI:
    """Build the gateway; connections open when it starts. On `metrics_port` it only answers Prometheus."""
    meters = GatewayMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        async with Store.connect(store_settings, meters) as store:
            state = State(
                settings=settings,
                store=store,
                outbound=Outbound(OutboundSettings()),
                metrics=meters,
            )
            async with _at_work(state):
                yield state

    app = FastAPI(
        title="Cynosure",
        version=__version__,
        summary="Guided diffusion as a service.",
        lifespan=lifespan,
        docs_url=None,  # routes/docs.py serves it, with a content security policy
        openapi_url=None,  # and this, with the public address
        redoc_url=None,
        telemetry=_telemetry(),
    )
    problems.install(app)
    if traces.tracer_provider() is None:  # FastAPI makes the spans
        app.add_middleware(Polls)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, larger={"/batches": settings.max_batch_bytes})
    app.add_middleware(PartLimit, max_parts=settings.max_json_parts, exempt=frozenset({"/batches"}))
    app.add_middleware(Decompressed)
    app.add_middleware(Door)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, **CORS)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(NoticeHangUps)
    app.add_middleware(ProxyHeaders, settings=settings)
    app.add_middleware(Measured, metrics=meters)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RequestIds, logs_access=settings.access_log)
    app.add_middleware(metrics.MetricsPort, port=metrics_port)  # the middleware added last is the outermost
    app.include_router(health.router)
    app.include_router(docs.router)
    app.include_router(studio.router)
    app.mount("/studio", studio.studio_files)
    modules = [generate, sweeps, plan, jobs, events, images, models, status, metrics]
    modules += [openai] if settings.openai else []
    modules += [replicate] if settings.replicate else []
    modules += [a1111, a1111_lacking] if settings.a1111 else []
    modules += [batch_routes, webhook_routes, admin_models, admin_workers]
    for module in modules:
        app.include_router(module.router, dependencies=[Depends(refuse_unknown)])
    schema.install(app)
    return app
