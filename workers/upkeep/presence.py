"""Saying every second how the worker is, and hearing whether it is told to drain."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from redis.exceptions import RedisError

from cynosure import __version__
from cynosure.contract import WorkerState, WorkerStatus
from jobs.fleet import FleetRegistry
from models.calibration.machine import device_name
from models.engine import Engine
from workers.background import STOP_S, BackgroundThread
from workers.host import EngineHost
from workers.settings import WorkerSettings

SAY_S = 1.0


class Presence(BackgroundThread):
    """Publishes the worker's status until it ends, also while it drains.

    Args:
        worker_name: the name of the worker.
        on_drain: called once, when it is told to drain.

    Attributes:
        device: what its device is called.
    """

    def __init__(
        self,
        fleet: FleetRegistry,
        host: EngineHost,
        engine: Engine,
        settings: WorkerSettings,
        *,
        worker_name: str,
        on_drain: Callable[[], None],
    ) -> None:
        super().__init__("presence", every_s=SAY_S)
        self._fleet = fleet
        self._host = host
        self._engine = engine
        self._worker_name = worker_name
        self.device = settings.device_name or str(engine.device)
        self._hardware = device_name(engine.device)
        self._max_jobs = settings.concurrency
        self._on_drain = on_drain
        self._since = datetime.now(UTC)

    def publish(self) -> None:
        """Publish the status now.

        Raises:
            RedisError: the store is away.
        """
        is_told_to_drain = self._fleet.tell(self._status())
        if is_told_to_drain and not self._host.claims.is_stopping:
            self._on_drain()

    def stop(self) -> None:
        """Say no more, and that the worker has ended; if the store is away, what was said expires."""
        super().stop()
        leaving = threading.Thread(target=self._leave, name="leaving", daemon=True)
        leaving.start()
        leaving.join(STOP_S)

    def _leave(self) -> None:
        with suppress(RedisError):
            self._fleet.leave(self._worker_name)

    def _turn(self) -> None:
        self.publish()

    def _status(self) -> WorkerStatus:
        held = self._host.leases.held()
        return WorkerStatus(
            name=self._worker_name,
            state=self._state(),
            device=self.device,
            hardware=self._hardware,
            models=tuple(self._host.cards),
            jobs=len(held),
            max_jobs=self._max_jobs,
            pictures=sum(not handle.is_done for job in held for handle in job.handles),
            busy=round(self._engine.busy_ratio, 3),
            version=__version__,
            since=self._since,
        )

    def _state(self) -> WorkerState:
        if self._host.claims.is_stopping:
            return WorkerState.DRAINING
        are_measured = all(loaded.is_measured for loaded in dict(self._engine.packs).values())
        return WorkerState.SERVING if are_measured else WorkerState.MEASURING
