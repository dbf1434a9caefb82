"""Measures packs while the engine serves, in short steps that take turns with the packs' ticks."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import torch

from models.calibration import Calibration, Calibrations, measuring
from models.calibration.networks import free_memory
from models.calibration.probes import Probes
from models.engine.loaded import LoadedPack

log = logging.getLogger(__name__)


@dataclass
class _Unmeasured:
    """A pack that is not measured yet.

    Attributes:
        loaded: the pack.
        key: cache key of its calibration.
        known: its calibration from an earlier process, or `None`.
        probes: inputs to measure it with, once its prompts are encoded.
        steps: the running measurement, or `None` before its first step.
    """

    loaded: LoadedPack
    key: str
    known: Calibration | None
    probes: Future[tuple[Probes, Probes | None]] = field(default_factory=Future)
    steps: Generator[Calibration | None, None, Calibration] | None = None


class Measurement:
    """The packs left to measure. Steps run on the engine's thread, while no tick is under way.

    Args:
        calibrations: store of earlier and new measurements.
    """

    def __init__(self, calibrations: Calibrations) -> None:
        self._calibrations = calibrations
        self._unmeasured: deque[_Unmeasured] = deque()
        self._over = threading.Event()
        self._start: Callable[[_Unmeasured], None] | None = None

    def known(self, key: str) -> Calibration | None:
        """The calibration that an earlier process measured, if any. May be slow: the store may be remote."""
        return self._calibrations.load(key)

    def add(self, loaded: LoadedPack, key: str, known: Calibration | None) -> None:
        """Register a pack to be measured, from the call of `allow` on; what is `known` under the key is reused."""
        pack = _Unmeasured(loaded, key, known)
        self._unmeasured.append(pack)
        self._over.clear()
        if self._start is not None:
            self._start(pack)

    def remove(self, loaded: LoadedPack) -> None:
        """Measure the pack no further."""
        self._unmeasured = deque(pack for pack in self._unmeasured if pack.loaded is not loaded)
        if self.is_allowed and not self._unmeasured:
            self._over.set()

    def allow(self, preparing: Executor, wake: Callable[[], None]) -> None:
        """Start measuring as soon as `preparing` has encoded probes; `wake` is called when a step becomes possible."""
        if self.is_allowed:
            return

        def start(pack: _Unmeasured) -> None:
            pack.probes = preparing.submit(pack.loaded.networks.probes)
            pack.probes.add_done_callback(lambda _: wake())

        for pack in self._unmeasured:
            start(pack)
        self._start = start
        if not self._unmeasured:
            self._over.set()

    @property
    def is_allowed(self) -> bool:
        return self._start is not None

    @property
    def wants_turn(self) -> bool:
        """Whether a step can be taken."""
        return self.is_allowed and any(pack.probes.done() for pack in self._unmeasured)

    def wait(self, timeout: float | None) -> bool:
        """Wait until nothing is left to measure, or until `stop`; `False` if the timeout passes first."""
        return self._over.wait(timeout)

    def stop(self) -> None:
        """Release all waiters: no further step will be taken."""
        self._over.set()

    def step(self) -> None:
        """Take one step with the next pack."""
        while not self._unmeasured[0].probes.done():
            self._unmeasured.rotate(-1)
        pack = self._unmeasured[0]
        loaded = pack.loaded
        try:
            if pack.steps is None:
                log.info("measuring %s between requests", loaded.name)
                pack.steps = measuring(loaded.networks, pack.probes.result(), loaded.runner.lanes, pack.known)
            calibration, is_last = _next_of(pack.steps)
            if calibration is not None:
                loaded.tune(calibration)
                self._unmeasured.rotate(-1)  # so that every pack soon has some batch sizes to use
            if is_last:
                self._end(pack)
        except torch.AcceleratorError:
            raise
        except Exception:
            log.exception("measuring %s failed; its current calibration stays in use", loaded.name)
            self._end(pack)

    def _end(self, pack: _Unmeasured) -> None:
        calibration = pack.loaded.calibration
        log.info("measured %s: batches of up to %d rows", pack.loaded.name, calibration.denoiser.knee)
        if pack.known is None and calibration.is_measured:  # on a separate thread, because the store may be slow
            threading.Thread(target=self._calibrations.save, args=(pack.key, calibration), daemon=True).start()
        if pack.loaded.networks.device.type != "cpu":
            free_memory()  # held by the largest batches, which ticks may never need
        self._unmeasured.remove(pack)
        pack.loaded.is_measured = True
        if not self._unmeasured:
            self._over.set()


def _next_of(steps: Generator[Calibration | None, None, Calibration]) -> tuple[Calibration | None, bool]:
    """Take a step; returns its result, and whether it was the last."""
    try:
        return next(steps), False
    except StopIteration as end:
        return end.value, True
