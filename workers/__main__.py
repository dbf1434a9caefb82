"""`python -m workers`: load the packs, publish their model cards, and serve until a signal stops the worker."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import warnings
from functools import wraps
from typing import Any

import typer
from celery.platforms import SecurityWarning

from jobs.fleet import FleetRegistry
from jobs.plans import InquiryDesk
from jobs.queue.doorbell import Doorbell
from jobs.queue.worker import WorkerStore
from jobs.settings import StoreSettings
from models.engine import Engine
from models.pack import InvalidPack
from workers import options
from workers.celery_app import build_celery
from workers.drawing.calibrations import SharedCalibrations
from workers.drawing.planner import Planner
from workers.host import EngineHost
from workers.retrying import Retrying
from workers.settings import WorkerSettings
from workers.upkeep.cancellations import Cancellations
from workers.upkeep.drain import Drain
from workers.upkeep.reaper import Reaper
from workers.upkeep.registration import Registration
from workers.upkeep.watchdog import Watchdog

log = logging.getLogger("workers")

STORE_TIMEOUT_S = 24 * 3600.0  # a worker may start before its store


def _stop_self() -> None:
    """Drain as after a SIGTERM: jobs go back to the queue, and a supervisor restarts the worker."""
    os.kill(os.getpid(), signal.SIGTERM)


def _engine(settings: WorkerSettings, fleet: FleetRegistry) -> Engine:
    try:
        return Engine(
            settings.packs,
            device=settings.device,
            precision=settings.precision,
            compiled=settings.compile,
            measure_at_once=False,
            calibrations=SharedCalibrations(fleet),
            on_death=lambda error: _stop_self(),
        )
    except InvalidPack as error:
        sys.stderr.write(f"cynosure worker: {error}\n")
        sys.exit(os.EX_CONFIG)


command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@command.command()
@wraps(options.worker)
def _main(**given: Any) -> None:
    settings = WorkerSettings(**{name: value for name, value in given.items() if value is not None})
    store_settings = StoreSettings()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    warnings.filterwarnings("ignore", module="diffusers")
    warnings.filterwarnings("ignore", category=SecurityWarning)  # about running as root: nothing is unpickled here

    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    store, doorbell, fleet = WorkerStore(store_settings), Doorbell(store_settings), FleetRegistry(store_settings)
    Retrying(timeout_s=STORE_TIMEOUT_S).call(store.ping)
    engine = _engine(settings, fleet)
    host = EngineHost(
        engine,
        store,
        doorbell,
        worker_name=name,
        slots=settings.concurrency,
        heartbeat_s=settings.heartbeat_s,
        job_timeout_s=settings.job_timeout_s,
    )
    models = tuple(host.cards)
    celery = build_celery(store_settings, host)
    registration = Registration(fleet, host.claims, name, host.published)
    helpers = (
        registration,
        Reaper(store, doorbell, models, interval_s=settings.reap_every_s, grace_after_outage_s=store_settings.lease_s),
        Planner(engine, host.cards, InquiryDesk(store_settings, models)),
        Watchdog(host.claims, doorbell, models, silence_s=settings.deaf_after_s, on_deaf=_stop_self),
        host.leases,
        Cancellations(store, host.leases),
    )
    drain = Drain(host, grace_s=settings.drain_s, on_begin=lambda: fleet.withdraw(name))
    drain.listen()
    Retrying(timeout_s=STORE_TIMEOUT_S).call(registration.publish)
    for helper in helpers:
        helper.start()
    log.info("worker %s serves %s", name, ", ".join(models))
    engine.measure()  # only now: measuring would delay the start
    try:
        celery.Worker(
            pool="threads",
            concurrency=settings.concurrency,
            hostname=name,
            without_mingle=True,
            without_gossip=True,
            without_heartbeat=True,
            loglevel="WARNING",
            quiet=True,
        ).start()
    finally:
        drain.finished()
        for helper in helpers:
            helper.stop()
        engine.close()


if __name__ == "__main__":
    command(prog_name="cynosure worker")
