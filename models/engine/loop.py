"""The tick loop: which pack runs next, and on how many cores."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from functools import partial

import torch

from models.engine.errors import DeadlineExceeded, EngineDied, SampleCancelled
from models.engine.loaded import LoadedPack
from models.engine.measurement import Measurement
from models.engine.observing import Load
from models.engine.sample import Sample
from models.engine.schedule import Turns
from models.engine.tick import Decoding, Tick
from models.lanes import FIRST_CALLS, CallRunner, InlineLane, set_thread_count
from models.spec import InvalidSpec

MEASURING = ""  # takes turns with the packs, like one of them; no pack has this name
CALLING = "\0"  # the same, for calls that need the loop's thread; they go first


class Loop:
    """Shares the device's cores between measuring and the ticks of all packs, until it is closed or fails.

    `serve` runs on one thread, ticks run there or in a lane, and every other method may be called from any thread. One
    lock guards all shared state: methods that need it held have a name that ends in `_locked`.

    Attributes:
        load: the cores in use.
        lock: guards the shared state; notified when there may be something to do.
        packs: by name; changed only before `serve` and by calls of `call`.

    Args:
        measurement: the measurements still to be taken.
        cores: threads that compute at once.
        on_death: called on the loop's thread when that thread, or a lane, fails with an error that no sample caused.
    """

    def __init__(self, measurement: Measurement, *, cores: int, on_death: Callable[[BaseException], None]) -> None:
        self.lock = threading.Condition()
        self.packs: dict[str, LoadedPack] = {}
        self._measurement = measurement
        self.load = Load(cores)
        self._cores = cores
        self._on_death = on_death
        self._turns = Turns()
        self._calls: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._is_closing = False
        self._fault: BaseException | None = None

    def enqueue(self, samples: Mapping[str, Collection[Sample]]) -> None:
        """Queue samples for their packs' ticks, all or none.

        Raises:
            EngineDied: the loop has ended.
            InvalidSpec: a pack was removed meanwhile.
        """
        with self.lock:
            if self._is_closing:
                raise EngineDied("the engine is closed")
            if gone := samples.keys() - self.packs.keys():
                raise InvalidSpec(f"no pack '{min(gone)}' is loaded")
            for name, pack_samples in samples.items():
                self.packs[name].enqueue(pack_samples)

    def call(self, work: Callable[[], None]) -> None:
        """Have `work` done on the loop's thread while no tick is under way, and wait; its errors are raised here.

        Raises:
            EngineDied: the loop has ended.
        """
        done: Future[None] = Future()
        with self.lock:
            if self._is_closing:
                raise EngineDied("the engine is closed")
            self._calls.append((work, done))
            self.lock.notify()
        done.result()

    def wake(self) -> None:
        """Make the loop check again for something to do."""
        with self.lock:
            self.lock.notify()

    def end(self, fault: BaseException | None = None) -> None:
        """Stop after the ticks in progress, because of a fault or because the loop is no longer needed."""
        with self.lock:
            if fault is None:
                self._is_closing = True
            else:
                self._fault = self._fault or fault
            self.lock.notify()

    def serve(self) -> None:
        """Run ticks until the end, then fail all unfinished samples with `EngineDied`."""
        error: BaseException = EngineDied("the engine was closed")
        try:
            while (turn := self._next_turn()) is not None:
                if turn == CALLING:
                    self._answer_call()
                elif turn == MEASURING:
                    self._measure()
                else:
                    self._dispatch(self.packs[turn])
        except BaseException as fatal:
            error = fatal
            self._on_death(fatal)
            raise
        finally:
            self.end()
            self._measurement.stop()
            for loaded in self.packs.values():
                loaded.runner.lanes.close()
            for _, call in self._calls:
                call.set_exception(EngineDied(f"the engine stopped: {error}"))
            with self.lock:
                unfinished = [sample for loaded in self.packs.values() for sample in loaded.schedule.evict_all()]
            for sample in unfinished:
                for orphan in (sample, *sample.take_forks()):
                    orphan.fail(EngineDied(f"the engine stopped: {error}"))

    def _next_turn(self) -> str | None:
        """Wait for a turn and free cores for it; a pack's name, `CALLING` or `MEASURING`, or `None` at the end."""
        with self.lock:
            if not self._wait_for_locked(lambda: bool(self._calls or self._ready_locked())):
                return None
            turn = CALLING if self._calls else self._turn_locked()
            cores = self._cores if turn in (CALLING, MEASURING) else self._lane_cores(self.packs[turn])
            # Freed cores are held for a pack that needs many: packs that need few would otherwise starve it.
            has_lane = self._wait_for_locked(lambda: cores <= self._cores - self.load.in_use)
            return turn if has_lane else None

    def _turn_locked(self) -> str:
        busy = [name for name, loaded in self.packs.items() if not loaded.schedule.is_idle]
        return self._turns.next(self._ready_locked(), busy=busy + self._measuring())

    def _wait_for_locked(self, condition: Callable[[], bool]) -> bool:
        """Wait for `condition`; `False` if the loop is closed meanwhile.

        Raises:
            BaseException: the fault that ended a tick.
        """
        self.lock.wait_for(lambda: self._is_closing or self._fault is not None or condition())
        if self._fault is not None:
            raise self._fault
        return not self._is_closing

    def _ready_locked(self) -> list[str]:
        """The names of the turns that could use a free core."""
        if self.load.in_use >= self._cores:
            return []
        return [name for name, loaded in self.packs.items() if loaded.wants_tick] + self._measuring()

    def _measuring(self) -> list[str]:
        is_idle = all(loaded.schedule.is_idle for loaded in self.packs.values())
        return [MEASURING] if self._measurement.wants_turn(is_idle=is_idle) else []

    def _lane_cores(self, loaded: LoadedPack) -> int:
        return min(loaded.lane_threads, self._cores)

    def _answer_call(self) -> None:
        work, done = self._calls.popleft()
        try:
            with FIRST_CALLS:
                work()
        except Exception as error:
            done.set_exception(error)
            if isinstance(error, torch.AcceleratorError):
                raise
        else:
            done.set_result(None)

    def _measure(self) -> None:
        started = time.monotonic()
        with FIRST_CALLS:
            self._measurement.step()
        with self.lock:
            self._turns.charge(MEASURING, (time.monotonic() - started) * self._cores)

    def _dispatch(self, loaded: LoadedPack) -> None:
        """Start the pack's next tick or decoding: in one lane, or here over all if nothing else could use the rest."""
        self._give_up(loaded)
        with self.lock:
            work = self._taken_locked(loaded)
            if work is None:
                return
            left = self._cores - self._lane_cores(loaded)
            others = any(self._lane_cores(other) <= left and other.has_work for other in self.packs.values())
            in_lane = loaded.lanes > 1 and (self.load.in_use > 0 or others)
            cores = self._lane_cores(loaded) * (1 if in_lane else loaded.lanes)
            self.load.change(cores)
            loaded.ticks += 1
        if in_lane:
            loaded.runner.lanes.start(partial(self._run, work, loaded, InlineLane(), cores))
        else:
            # As many threads as a lane has, if the tick could have run in one: more may change how sums round.
            set_thread_count(self._lane_cores(loaded) if loaded.lanes > 1 else 1)
            self._run(work, loaded, loaded.runner.lanes, cores)

    def _taken_locked(self, loaded: LoadedPack) -> Tick | Decoding | None:
        """What the pack does next. Samples that are only to be decoded go first: it is short, and somebody waits."""
        if not loaded.is_decoding and (done := loaded.take_done()):
            loaded.is_decoding = True
            return Decoding(loaded, done)
        samples = loaded.schedule.take(now=time.monotonic())
        return Tick(loaded, samples) if samples else None

    def _give_up(self, loaded: LoadedPack) -> None:
        """Fail the samples that were cancelled or whose deadline has passed."""
        while expired := self._expired(loaded):  # repeated, because their forks may be given up too
            for sample in expired:
                error = SampleCancelled("cancelled") if sample.is_cancelled else DeadlineExceeded("not done in time")
                loaded.fail(sample, error)

    def _expired(self, loaded: LoadedPack) -> list[Sample]:
        with self.lock:
            return loaded.schedule.expired(now=time.monotonic())

    def _run(self, work: Tick | Decoding, loaded: LoadedPack, lanes: CallRunner, cores: int) -> None:
        started = time.monotonic()
        fault: BaseException | None = None
        try:
            work.run(lanes)
        except BaseException as raised:
            fault = raised
        seconds = time.monotonic() - started
        if isinstance(work, Tick):
            loaded.tally.ticked(seconds)
        with self.lock:
            loaded.schedule.put_back(work.samples)
            loaded.ticks -= 1
            loaded.is_decoding = loaded.is_decoding and not isinstance(work, Decoding)
            self.load.change(-cores)
            self._fault = self._fault or fault
            self._turns.charge(loaded.name, seconds * cores)
            self.lock.notify()
