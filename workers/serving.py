"""A worker: loads the packs, publishes their model cards, and serves until a signal stops it."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from celery import Celery
from celery.platforms import SecurityWarning

from cynosure.contract import Review
from jobs import traces
from jobs.fleet import FleetRegistry
from jobs.plans import InquiryDesk
from jobs.queue.doorbell import Doorbell
from jobs.queue.worker import WorkerStore
from jobs.roster import RosterDesk
from jobs.settings import MetricsSettings, StoreSettings
from jobs.starting import InvalidSettings, refusing
from jobs.store.connection import refuse_cluster
from models.engine import Engine
from models.loading import InvalidDevice
from models.pack import InvalidPack, Pack
from models.reviewing.folder import InvalidReview, ReviewFolder
from models.reviewing.reviewer import Reviewer
from workers.admitted import open_admitted
from workers.background import BackgroundThread
from workers.celery_app import SilentWorker, build_celery
from workers.drawing.calibrations import SharedCalibrations
from workers.drawing.planner import Planner
from workers.drawing.reviews import Reviews
from workers.host import EngineHost
from workers.retrying import Retrying
from workers.settings import ReviewSettings, WorkerSettings
from workers.upkeep.cancellations import Cancellations
from workers.upkeep.drain import Drain, Ending
from workers.upkeep.loras import LoraWatch
from workers.upkeep.metrics import EngineMetrics
from workers.upkeep.metrics_port import MetricsPort
from workers.upkeep.presence import Presence
from workers.upkeep.reaper import Reaper
from workers.upkeep.registration import Registration
from workers.upkeep.roster import RosterKeeper
from workers.upkeep.watchdog import Watchdog

log = logging.getLogger("workers")

STORE_TIMEOUT_S = 24 * 3600.0  # a worker may start before its store


def _engine(settings: WorkerSettings, packs: Sequence[Pack], fleet: FleetRegistry, ending: Ending) -> Engine:
    return Engine(
        packs,
        device=settings.device,
        precision=settings.precision,
        encoder_precision=settings.encoder_precision,
        quantize=settings.quantize,
        offloaded=settings.offload,
        compiled=settings.compile,
        loras=settings.loras,
        controls=settings.controls,
        measure_at_once=False,
        calibrations=SharedCalibrations(fleet),
        on_death=lambda error: ending.for_restart(),
    )


def _reviews(settings: ReviewSettings, found: ReviewFolder | None, device: str) -> Reviews | None:
    if found is None:
        return None
    reviewer = Reviewer(found, settings.thresholds, device)
    card = Review(action=settings.action, thresholds=settings.thresholds, digest=found.digest())
    log.info("pictures are reviewed by %s, %d parameters", found.folder, reviewer.num_parameters)
    return Reviews(reviewer, card)


def _host(
    settings: WorkerSettings,
    engine: Engine,
    store: WorkerStore,
    doorbell: Doorbell,
    name: str,
    reviews: Reviews | None,
) -> EngineHost:
    return EngineHost(
        engine,
        store,
        doorbell,
        worker_name=name,
        slots=settings.concurrency,
        heartbeat_s=settings.heartbeat_s,
        job_timeout_s=settings.job_timeout_s,
        reviews=reviews,
    )


def _watching_loras(settings: WorkerSettings, host: EngineHost, registration: Registration) -> Sequence[LoraWatch]:
    """What tells of the LoRAs, if there is a folder of them; it has looked once, for the first cards."""
    if settings.loras is None:
        return ()
    watch = LoraWatch(settings.loras, host.adapter_bases, show=host.show_loras, publish=registration.publish)
    watch.look()
    return (watch,)


def _celery(app: Celery, name: str, concurrency: int) -> SilentWorker:
    return SilentWorker(
        app=app,
        pool="threads",
        concurrency=concurrency,
        hostname=name,
        without_mingle=True,
        without_gossip=True,
        without_heartbeat=True,
        quiet=True,
    )


@contextmanager
def _metrics_port(settings: MetricsSettings, store: WorkerStore) -> Iterator[MetricsPort | None]:
    """The port for metrics, if the settings name one, for as long as the body takes."""
    if settings.port is None:
        yield None
        return
    with refusing("cynosure worker", InvalidSettings):
        port = MetricsPort(settings.host, settings.port, store.metrics.registry, store.ping)
    port.start()
    try:
        yield port
    finally:
        port.stop()


def serve(
    settings: WorkerSettings,
    store_settings: StoreSettings,
    metrics: MetricsSettings,
    review: ReviewSettings,
    packs: Sequence[Pack],
    reviewing: ReviewFolder | None,
    *,
    is_supervised: bool,
) -> None:
    """Serve the packs until a signal or an operator stops the worker, and end the process.

    Pictures are reviewed by the classifier in `reviewing`, if given. The exit code is `EX_CONFIG` for what can't be
    served, and that of an `Ending` otherwise.
    """
    warnings.filterwarnings("ignore", module="diffusers")
    warnings.filterwarnings("ignore", category=SecurityWarning)  # about running as root: nothing is unpickled here
    store, ending = WorkerStore(store_settings), Ending(is_supervised=is_supervised)
    with _metrics_port(metrics, store) as port:
        with refusing("cynosure worker", InvalidReview):
            reviews = _reviews(review, reviewing, settings.device)
        code = _serve(settings, store_settings, packs, reviews, store, port, ending)
    sys.exit(code)


def _serve(
    settings: WorkerSettings,
    store_settings: StoreSettings,
    packs: Sequence[Pack],
    reviews: Reviews | None,
    store: WorkerStore,
    port: MetricsPort | None,
    ending: Ending,
) -> int:
    """Serve, and return the exit code."""
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    doorbell, fleet = Doorbell(store_settings), FleetRegistry(store_settings)
    with refusing("cynosure worker", InvalidSettings, InvalidPack, InvalidDevice):
        Retrying(timeout_s=STORE_TIMEOUT_S).call(lambda: refuse_cluster(store_settings))
        engine = _engine(settings, packs, fleet, ending)
        host = _host(settings, engine, store, doorbell, name, reviews)
    models = host.cards
    celery = _celery(build_celery(store_settings, host), name, settings.concurrency)
    registration = Registration(fleet, host.claims, name, host.published)
    presence = Presence(fleet, host, engine, settings, worker_name=name, on_drain=ending.for_good)
    helpers: tuple[BackgroundThread, ...] = (
        registration,
        presence,
        Reaper(store, doorbell, models, interval_s=settings.reap_every_s, grace_after_outage_s=store_settings.lease_s),
        Planner(engine, host.cards, InquiryDesk(store_settings, models)),
        Watchdog(host.claims, doorbell, models, silence_s=settings.deaf_after_s, on_deaf=ending.for_restart),
        host.leases,
        Cancellations(store, host.leases),
        RosterKeeper(
            host,
            store,
            RosterDesk(store_settings),
            worker_name=name,
            open_pack=partial(open_admitted, root=settings.models_root, from_hub=settings.models_hub),
            listen=celery.listen,
            publish=registration.publish,
        ),
        *_watching_loras(settings, host, registration),
    )
    drain = Drain(host, ending, grace_s=settings.drain_s, on_begin=lambda: fleet.withdraw(name))
    for one in (presence, registration):
        Retrying(timeout_s=STORE_TIMEOUT_S).call(one.publish)
    drain.listen()
    for helper in helpers:
        helper.start()
    store.metrics.registry.register(EngineMetrics(engine, presence.device))
    if port is not None:
        port.ready(lambda: not host.claims.is_stopping)
    log.info("worker %s serves %s", name, ", ".join(models))
    engine.measure()  # only now: measuring would delay the start
    try:
        celery.start()
    finally:
        drain.finished()
        for helper in helpers:
            helper.stop()
        engine.close()
        traces.stop()
        log.info("worker %s has stopped", name)
    return ending.exit_code or int(celery.exitcode or os.EX_OK)
