"""`python -m workers`: load the packs, publish what they can do, and serve until told to stop."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import warnings

import torch
from celery.platforms import SecurityWarning
from celery.signals import worker_shutting_down

from app.jobs.doorbell import Doorbell
from app.jobs.fleet import FleetRegistry
from app.jobs.inquiries import InquiryDesk
from app.jobs.settings import StoreSettings
from app.jobs.store import WorkerStore
from models.engine import Calibration, Engine, cached_calibration, calibration_key
from models.loading import InvalidPack, Pack
from workers.celery_app import build_celery
from workers.host import EngineHost
from workers.planner import Planner
from workers.reaper import Reaper
from workers.settings import WorkerSettings

log = logging.getLogger("workers")


def main() -> None:
    """Run one worker in the foreground. SIGTERM drains it; what is unfinished after the grace goes back."""
    parser = argparse.ArgumentParser(prog="cynosure worker", description=main.__doc__)
    parser.add_argument("--models", help="packs to load: names or folders, separated by commas")
    parser.add_argument("--device", help="torch device, such as cpu or cuda:0")
    chosen = {key: value for key, value in vars(parser.parse_args()).items() if value is not None}
    settings, store_settings = WorkerSettings(**chosen), StoreSettings()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    warnings.filterwarnings("ignore", module="diffusers")
    warnings.filterwarnings("ignore", category=SecurityWarning)  # Celery's, about root: nothing is unpickled here

    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    store, doorbell, fleet = WorkerStore(store_settings), Doorbell(store_settings), FleetRegistry(store_settings)

    def agreed_calibration(pack: Pack, device: torch.device) -> Calibration:
        key = calibration_key(pack, device, compiling=settings.compile)
        return Calibration.from_json(
            fleet.agree_on_calibration(
                key, lambda: cached_calibration(pack, device, compiling=settings.compile).to_json()
            )
        )

    try:
        engine = Engine(
            settings.packs,
            device=settings.device,
            calibrate=agreed_calibration,
            on_death=lambda error: os.kill(os.getpid(), signal.SIGTERM),  # jobs go back; a supervisor starts us anew
        )
    except InvalidPack as error:
        sys.stderr.write(f"cynosure worker: {error}\n")
        sys.exit(os.EX_CONFIG)
    host = EngineHost(
        engine,
        store,
        doorbell,
        worker_name=name,
        heartbeat_s=settings.heartbeat_s,
        job_timeout_s=settings.job_timeout_s,
        on_beat=lambda: fleet.publish(name, list(host.cards.values())),
    )
    celery = build_celery(store_settings, host)
    reaper = Reaper(store, doorbell, tuple(host.cards), interval_s=settings.reap_every_s)
    planner = Planner(engine, host.cards, InquiryDesk(store_settings, tuple(host.cards)))
    grace = threading.Timer(settings.drain_s, host.hand_back_all)
    grace.daemon = True

    @worker_shutting_down.connect(weak=False)
    def drain(**_: object) -> None:
        fleet.withdraw(name)
        grace.start()

    fleet.publish(name, list(host.cards.values()))
    host.leases.start()
    reaper.start()
    planner.start()
    log.info("worker %s serves %s", name, ", ".join(host.cards))
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
        planner.stop()
        reaper.stop()
        host.leases.stop()
        fleet.withdraw(name)
        engine.close()


if __name__ == "__main__":
    main()
