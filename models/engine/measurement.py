"""Measures packs while the engine serves, in short steps that take turns with the packs' ticks."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar
from weakref import WeakSet

import torch

from models.adapters import ControlNetwork
from models.calibration import Calibration, Calibrations, Networks, measuring, measuring_control
from models.calibration.measure import Steps
from models.calibration.networks import free_memory
from models.calibration.probes import Probes
from models.engine.loaded import LoadedPack
from models.engine.sample import Course

MAX_SHAPES = 16  # most shapes, beside its own, for which a pack is measured
_Result = TypeVar("_Result")
log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Unmeasured:
    """A pack that is not measured yet, at its own size or at another.

    Attributes:
        loaded: the pack.
        networks: those to measure.
        key: cache key of its calibration; `None` for other sizes than its own, which are not kept.
        known: its calibration from an earlier process, or `None`.
        shape: of its latents.
        probes: inputs to measure it with, once its prompts are encoded.
        control: a ControlNet of the pack, if that is measured instead of the pack's own networks.
        steps: the running measurement, or `None` before its first step.
    """

    loaded: LoadedPack
    networks: Networks
    key: str | None
    known: Calibration | None
    shape: tuple[int, int, int]
    probes: Future[tuple[Probes, Probes | None]] = field(default_factory=Future)
    control: ControlNetwork | None = None
    steps: Steps[Callable[[], None]] | None = None

    @property
    def name(self) -> str:
        """What is measured, for logs."""
        return self.loaded.name if self.control is None else f"{self.control.name} of {self.loaded.name}"

    def measuring(self) -> Steps[Callable[[], None]]:
        """Its measurement; each result is what puts it to use."""
        (probes, others), loaded, control = self.probes.result(), self.loaded, self.control
        if control is None:
            of_pack = measuring(self.networks, (probes, others), loaded.runner.lanes, self.known)
            return _used(of_pack, lambda found: loaded.tune(found, self.shape))
        of_control = measuring_control(control, probes, loaded.runner.lanes)
        return _used(of_control, control.use)


class Measurement:
    """The packs left to measure. Steps run on the engine's thread, while no tick is under way.

    Args:
        calibrations: store of earlier and new measurements.
    """

    def __init__(self, calibrations: Calibrations) -> None:
        self._calibrations = calibrations
        self._unmeasured: deque[_Unmeasured] = deque()
        self._over = threading.Event()
        self._preparing: Executor | None = None
        self._wake: Callable[[], None] = lambda: None
        self._wanted: dict[str, set[tuple[int, int, int]]] = defaultdict(set)
        self._controls: WeakSet[ControlNetwork] = WeakSet()

    def known(self, key: str) -> Calibration | None:
        """The calibration that an earlier process measured, if any. May be slow: the store may be remote."""
        return self._calibrations.load(key)

    def add(self, loaded: LoadedPack, key: str, known: Calibration | None) -> None:
        """Register a pack to be measured, from the call of `allow` on; what is `known` under the key is reused."""
        pack = _Unmeasured(loaded, loaded.networks, key, known, loaded.denoiser.latent_shape)
        self._over.clear()
        if self._preparing is not None:
            self._start(pack, self._preparing)
        self._unmeasured.append(pack)

    def remove(self, loaded: LoadedPack) -> None:
        """Measure the pack no further."""
        self._wanted.pop(loaded.name, None)
        for pack in tuple(self._unmeasured):
            if pack.loaded is loaded:
                self._unmeasured.remove(pack)
        if self.is_allowed and not self._unmeasured:
            self._over.set()

    def _start(self, pack: _Unmeasured, preparing: Executor) -> None:
        pack.probes = preparing.submit(pack.networks.probes)
        pack.probes.add_done_callback(lambda _: self._wake())

    def want(self, loaded: LoadedPack, course: Course) -> None:
        """Have what a picture needs measured when all is idle: a shape that is not the pack's own, and ControlNets."""
        if self._preparing is None or not loaded.is_measured:
            return
        shape, own, shapes = course.shape, loaded.denoiser.latent_shape, self._wanted[loaded.name]
        if shape != own and shape not in shapes and len(shapes) < MAX_SHAPES:
            shapes.add(shape)
            networks, probes = loaded.networks.at(course.spec.size(loaded.denoiser.picture_size))
            self._add(_Unmeasured(loaded, networks, None, None, shape), probes)
        for each in course.inputs.extras.controls if course.inputs.extras is not None else ():
            if each.network not in self._controls:
                self._controls.add(each.network)
                wanted = _Unmeasured(loaded, loaded.networks, None, None, own, control=each.network)
                self._add(wanted, loaded.networks.probes)

    def _add(self, pack: _Unmeasured, probes: Callable[[], tuple[Probes, Probes | None]]) -> None:
        assert self._preparing is not None
        pack.probes = self._preparing.submit(probes)
        self._unmeasured.append(pack)
        pack.probes.add_done_callback(lambda _: self._wake())

    def allow(self, preparing: Executor, wake: Callable[[], None]) -> None:
        """Start measuring as soon as `preparing` has encoded probes; `wake` is called when a step becomes possible."""
        if self.is_allowed:
            return
        self._preparing, self._wake = preparing, wake
        for pack in tuple(self._unmeasured):
            self._start(pack, preparing)
        if not self._unmeasured:
            self._over.set()

    @property
    def is_allowed(self) -> bool:
        return self._preparing is not None

    @property
    def is_unfinished(self) -> bool:
        """Whether a pack is left to be measured."""
        return bool(self._unmeasured)

    def wants_turn(self, *, is_idle: bool) -> bool:
        """Whether a step can be taken. Other sizes than the packs' own are measured while no sample is unfinished."""
        return self.is_allowed and any(
            pack.probes.done() and (is_idle or pack.key is not None) for pack in tuple(self._unmeasured)
        )

    def wait(self, timeout: float | None) -> bool:
        """Wait until nothing is left to measure, or until `stop`; `False` if the timeout passes first."""
        return self._over.wait(timeout)

    def stop(self) -> None:
        """Release all waiters: no further step will be taken."""
        self._over.set()

    def step(self) -> None:
        """Take one step with the next pack."""
        ready = [pack for pack in tuple(self._unmeasured) if pack.probes.done()]
        pack = min(ready, key=lambda pack: pack.key is None)  # own sizes first
        try:
            if pack.steps is None:
                log.info("measuring %s between requests, with latents of %s", pack.name, pack.shape)
                pack.steps = pack.measuring()
            use, is_last = _next_of(pack.steps)
            if use is not None:
                use()
                self._unmeasured.remove(pack)
                self._unmeasured.append(pack)  # so that every pack soon has some batch sizes to use
            if is_last:
                self._end(pack)
        except torch.AcceleratorError:
            raise
        except Exception:
            log.exception("measuring %s failed; its current calibration stays in use", pack.name)
            self._end(pack)

    def _end(self, pack: _Unmeasured) -> None:
        loaded, calibration = pack.loaded, pack.loaded.runner.calibration_for(pack.shape)
        knee = calibration.denoiser.knee if pack.control is None else pack.control.batching.knee
        log.info("measured %s: batches of up to %d rows", pack.name, knee)
        if pack.key is not None and pack.known is None and calibration.is_measured:
            # On a separate thread, because the store may be slow.
            threading.Thread(target=self._calibrations.save, args=(pack.key, calibration), daemon=True).start()
        if loaded.networks.device.type != "cpu":
            free_memory()  # held by the largest batches, which ticks may never need
        self._unmeasured.remove(pack)
        loaded.is_measured = True
        if all(left.key is None for left in tuple(self._unmeasured)):
            self._over.set()


def _used(steps: Steps[_Result], use: Callable[[_Result], None]) -> Steps[Callable[[], None]]:
    """The same steps, with a call that puts a result to use in place of it."""
    while True:
        result, is_last = _next_of(steps)
        call = None if result is None else partial(use, result)
        if is_last:
            assert call is not None
            return call
        yield call


def _next_of(steps: Steps[_Result]) -> tuple[_Result | None, bool]:
    """Take a step; returns its result, and whether it was the last."""
    try:
        return next(steps), False
    except StopIteration as end:
        return end.value, True
