"""Measuring packs while the engine serves: a step between ticks, in turns with the packs."""

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
        key: of its calibration.
        known: its calibration by an earlier process.
        probes: what it is measured with, once prompts are encoded for it.
        steps: of measuring it, once they have begun.
    """

    loaded: LoadedPack
    key: str
    known: Calibration | None
    probes: Future[tuple[Probes, Probes | None]] = field(default_factory=Future)
    steps: Generator[Calibration | None, None, Calibration] | None = None


class Measurement:
    """What is left to measure. Its steps are taken on the engine's thread, with no tick under way.

    Args:
        calibrations: what was measured before, and where results go.
    """

    def __init__(self, calibrations: Calibrations) -> None:
        self._calibrations = calibrations
        self._unmeasured: deque[_Unmeasured] = deque()
        self._over = threading.Event()
        self._is_allowed = False

    def add(self, loaded: LoadedPack, key: str) -> None:
        """Have a pack measured, once that is allowed; what another process has found out of it is used."""
        self._unmeasured.append(_Unmeasured(loaded, key, self._calibrations.load(key)))

    def allow(self, preparing: Executor, wake: Callable[[], None]) -> None:
        """Begin, once probes are encoded by `preparing`; `wake` is called each time that a step has become possible."""
        for one in self._unmeasured:
            one.probes = preparing.submit(one.loaded.networks.probes)
            one.probes.add_done_callback(lambda _: wake())
        self._is_allowed = True
        if not self._unmeasured:
            self._over.set()

    @property
    def is_allowed(self) -> bool:
        return self._is_allowed

    @property
    def wants_turn(self) -> bool:
        """Whether a step can be taken."""
        return self._is_allowed and any(one.probes.done() for one in self._unmeasured)

    def wait(self, timeout: float | None) -> bool:
        """Wait until nothing is left, or until `stop`; `False` if the time is up before."""
        return self._over.wait(timeout)

    def stop(self) -> None:
        """Keep nobody waiting: no further step will be taken."""
        self._over.set()

    def step(self) -> None:
        """Take one step with the next pack."""
        while not self._unmeasured[0].probes.done():
            self._unmeasured.rotate(-1)
        one = self._unmeasured[0]
        try:
            if one.steps is None:
                log.info("measuring %s between requests", one.loaded.name)
                one.steps = measuring(one.loaded.networks, one.probes.result(), one.loaded.runner.lanes, one.known)
            calibration, is_last = _next_of(one.steps)
            if calibration is not None:
                one.loaded.tune(calibration)
                self._unmeasured.rotate(-1)  # soon every pack has some batches to use
            if is_last:
                self._end(one)
        except torch.AcceleratorError:
            raise
        except Exception:
            log.exception("measuring %s failed; it goes on as it is", one.loaded.name)
            self._end(one)

    def _end(self, one: _Unmeasured) -> None:
        calibration = one.loaded.calibration
        log.info("measured %s: batches of up to %d rows", one.loaded.name, calibration.denoiser.knee)
        if one.known is None and calibration.is_measured:  # on a thread of its own: a store may be slow
            threading.Thread(target=self._calibrations.save, args=(one.key, calibration), daemon=True).start()
        if one.loaded.networks.device.type != "cpu":
            free_memory()  # of the largest batches, which no tick may ever need
        self._unmeasured.remove(one)
        one.loaded.is_measured = True
        if not self._unmeasured:
            self._over.set()


def _next_of(steps: Generator[Calibration | None, None, Calibration]) -> tuple[Calibration | None, bool]:
    """What a step has found, and whether it was the last."""
    try:
        return next(steps), False
    except StopIteration as end:
        return end.value, True
