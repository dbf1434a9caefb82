"""The engine: a loop of ticks, lanes to run them on, and a handle for everyone who waits."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.calibration import (
    Calibration,
    Calibrations,
    FileCalibrations,
    Networks,
    calibration_key,
    load_networks,
    measuring,
)
from models.calibration.networks import free_memory
from models.calibration.probes import Probes
from models.denoisers import Denoiser
from models.engine.outline import Outline, outline
from models.engine.runner import Inputs, Runner
from models.engine.schedule import Sample, Schedule, Turns, share_prefixes
from models.lanes import CORES, OwnLane, Result, Runs, compute_with, let_go
from models.loading import InvalidPack, Pack, open_pack
from models.samplers import FLOW_PREDICTION
from models.samplers.respacing import alpha_bars
from models.spec import InvalidSpec, SampleSpec

log = logging.getLogger(__name__)

MEASURING = ""  # in turns with the packs; no pack has this name
FEW_ROWS = 4  # a lane; of so few, two pictures with a classifier took 19 ms an evaluation in one tick, and 29 in two

Image = NDArray[np.uint8]
"""A finished picture: (H, W, C)."""
Preview = Callable[[int, int, Image], None]
"""Called with the picture's index among those submitted with it, the evaluations done, and the picture so far."""


class SampleFailed(RuntimeError):
    """One picture could not be made; its neighbours were not touched."""


class SampleCancelled(SampleFailed):
    """The picture was cancelled."""


class DeadlineExceeded(SampleFailed):
    """The picture was not done in time."""


class OutOfMemory(SampleFailed):
    """The device had no memory for the picture, alone; another time it may have."""


class EngineDied(SampleFailed):
    """The engine's thread is gone, and with it everything that was on its way."""


def _failure(error: Exception) -> SampleFailed:
    """What a sample that has met the error fails with.

    Raises:
        AcceleratorError: the device is lost, and every later call on it would fail the same way.
    """
    if isinstance(error, torch.AcceleratorError):
        raise error
    let_go(error)
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfMemory(f"out of memory: {error}")
    return SampleFailed(f"{type(error).__name__}: {error}")


class Handle:
    """What `Engine.submit` returns: one picture's future."""

    def __init__(self) -> None:
        self._future: Future[Image] = Future()
        self._sample: Sample | None = None

    def result(self, timeout: float | None = None) -> Image:
        """Wait for the picture.

        Raises:
            SampleFailed: or one of its kinds.
            TimeoutError: not done within `timeout` seconds.
        """
        return self._future.result(timeout)

    def cancel(self) -> None:
        """Give the picture up: its rows are free when its tick is over."""
        if self._sample is not None:
            self._sample.cancelled = True

    @property
    def is_done(self) -> bool:
        return self._future.done()

    @property
    def position(self) -> int:
        """Network evaluations done."""
        return self._sample.position if self._sample else 0

    @property
    def num_positions(self) -> int:
        """Network evaluations in all."""
        return self._sample.num_positions if self._sample else 0

    @property
    def telemetry(self) -> list[dict[str, float]]:
        """What guidance did in each evaluation so far, where the spec asked for it."""
        return list(self._sample.trace) if self._sample else []


def results(handles: Sequence[Handle]) -> list[Image]:
    """Wait for all pictures, or for the first that fails.

    Raises:
        SampleFailed: or one of its kinds.
    """
    futures = [handle._future for handle in handles]
    wait(futures, return_when=FIRST_EXCEPTION)
    for future in futures:
        if future.done():
            future.result()
    return [future.result() for future in futures]


@dataclass
class _Loaded:
    """A pack and all that is of it.

    Attributes:
        networks: what the runner runs.
        key: of its calibration.
        known: its calibration by an earlier process.
        is_measured: whether measuring has ended.
        ticks: under way.
        probes: what it is measured with, once prompts are encoded for it.
        measuring: the steps of it, once they have begun.
    """

    pack: Pack
    networks: Networks
    runner: Runner
    schedule: Schedule
    key: str
    known: Calibration | None
    is_measured: bool
    ticks: int = 0
    probes: Future[tuple[Probes, Probes | None]] = field(default_factory=Future)
    measuring: Generator[Calibration | None, None, Calibration] | None = None

    @property
    def lanes(self) -> int:
        return self.runner.lanes.count

    @property
    def lane_cores(self) -> int:
        return min(self.runner.lanes.layout.threads, CORES)

    @property
    def can_be_measured(self) -> bool:
        return self.probes.done()


def _next_of(steps: Generator[Calibration | None, None, Calibration]) -> tuple[Calibration | None, bool]:
    """What a step has found, and whether it was the last."""
    try:
        return next(steps), False
    except StopIteration as end:
        return end.value, True


class Engine:
    """Draws pictures for everyone at once.

    Samples join at any tick and leave the moment they are done. Where the device has several lanes each ticks by
    itself, so that none waits for another. Use it as a context manager, or call `close`.

    Args:
        packs: names of bundled packs, folders, or `owner/name@COMMIT` on the hub.
        device: torch device.
        precision: number format of the networks, one of `models.calibration.networks.PRECISIONS`; by default by rule.
        compiled: whether `torch.compile` makes their kernels.
        measure_at_once: start measuring at once; otherwise when `measure` is called.
        calibrations: what was measured before; by default the user's cache folder. What is not there the engine
            measures while it serves, between ticks; that changes how soon pictures are done, and none of their bytes.
        calibrate: says how a pack runs, given what the rules say, instead of measuring.
        on_death: called on the engine's own thread where that, or a lane, has a fault of its own.

    Raises:
        InvalidPack: a pack that is not there, or is not one.

    Example:
        >>> with Engine(["fashion"]) as engine:
        ...     handle = engine.submit(SampleSpec(pack="fashion", label=7, steps=20))
        ...     picture = handle.result()
    """

    def __init__(
        self,
        packs: Sequence[str],
        *,
        device: str = "cpu",
        precision: str = "auto",
        compiled: bool = False,
        measure_at_once: bool = True,
        calibrations: Calibrations | None = None,
        calibrate: Callable[[Pack, Calibration], Calibration] | None = None,
        on_death: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.device = torch.device(device)
        self._loaded: dict[str, _Loaded] = {}
        self._runners: dict[str, Runner] = {}
        self._arrived = threading.Condition()
        self._closing = False
        self._on_death = on_death
        self._calibrations = calibrations if calibrations is not None else FileCalibrations()
        self._calibrate = calibrate
        self._load_networks = partial(load_networks, device=self.device, precision=precision, compiled=compiled)
        self._unmeasured: deque[_Loaded] = deque()
        self._measured = threading.Event()
        self._may_measure = measure_at_once
        self._previews: dict[Sample, Callable[[int, Image], None]] = {}
        self._turns = Turns()
        self._cores_in_use = 0
        # One thread for all callers: the sums of an encoder over their own numbers of threads may round otherwise, and
        # no two threads may use a fast tokenizer at once.
        self._preparing = ThreadPoolExecutor(1, f"preparing-{device}", initializer=compute_with, initargs=(1,))
        self._fault: BaseException | None = None
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(packs, ready), name=f"engine-{device}", daemon=True)
        self._thread.start()
        ready.result()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def packs(self) -> dict[str, Pack]:
        return {name: loaded.pack for name, loaded in self._loaded.items()}

    def num_parameters(self, pack: str) -> int:
        return self._loaded[pack].runner.denoiser.num_parameters

    def denoiser(self, pack: str) -> Denoiser:
        """The pack's denoiser: what it can be told, and what it draws."""
        return self._loaded[pack].runner.denoiser

    def steers_by_prompt(self, pack: str) -> bool:
        """Whether the pack's classifier is asked by a prompt."""
        steering = self._loaded[pack].runner.steering
        return steering is not None and steering.takes_prompt

    def last_alpha_bar(self, pack: str) -> float:
        """ᾱ of the pack's noisiest timestep: 0 where it starts from noise alone."""
        if self.denoiser(pack).prediction_type == FLOW_PREDICTION:
            return 0.0
        return float(alpha_bars(self._loaded[pack].pack.scheduler_config)[-1])

    def calibration(self, pack: str) -> Calibration:
        """How the pack runs on this device."""
        return self._loaded[pack].runner.calibration

    def measure(self) -> None:
        """Begin to measure, between ticks, what isn't measured yet."""
        if not self._may_measure:
            self._encode_probes()
            self._may_measure = True
            self._wake()

    def is_measured(self, pack: str) -> bool:
        """Whether measuring the pack has ended."""
        return self._loaded[pack].is_measured

    def wait_until_measured(self, timeout: float | None = None) -> bool:
        """Wait until every pack has been measured; `False` if the time is up, or the engine ends before."""
        return self._measured.wait(timeout) and all(loaded.is_measured for loaded in self._loaded.values())

    def picture_size(self, pack: str) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self._loaded[pack].runner.denoiser.picture_size

    def num_positions(self, spec: SampleSpec) -> int:
        """Network evaluations that `spec` takes."""
        return len(self._loaded_for(spec).runner.table(spec))

    def outline(self, specs: Sequence[SampleSpec]) -> Outline:
        """What drawing `specs` would take, which differ in their seeds alone; errors as those of `submit`."""
        runner = self._loaded_for(specs[0]).runner
        self._prepared(runner, specs[0])
        return outline(runner, specs)

    def submit(self, spec: SampleSpec, *, timeout: float | None = None, on_preview: Preview | None = None) -> Handle:
        """Queue one picture.

        Args:
            spec: what to draw.
            timeout: seconds from now, after which the picture is given up.
            on_preview: called on one of the engine's threads, every `preview_every` evaluations of the spec; must be
                quick.

        Raises:
            InvalidSpec: the spec can't be drawn by its pack.
            OutOfMemory: there was none for what its networks are told.
            EngineDied: the engine is gone.
        """
        [handle] = self.submit_all([spec], timeout=timeout, on_preview=on_preview)
        return handle

    def submit_all(
        self, specs: Sequence[SampleSpec], *, timeout: float | None = None, on_preview: Preview | None = None
    ) -> list[Handle]:
        """Queue pictures together, all or none; arguments and errors as those of `submit`.

        Pictures that differ in their scales alone share the evaluations before their guidance interval; of those, only
        the first has previews.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        samples = [self._sample(spec, deadline) for spec in specs]
        with self._arrived:
            if self._closing:
                raise EngineDied("the engine is closed")
            if on_preview is not None:
                self._previews |= {sample: partial(on_preview, index) for index, sample in enumerate(samples)}
            now = time.monotonic()
            for sample in share_prefixes(samples):
                self._loaded_for(sample.spec).schedule.enqueue(sample, now=now)
            self._arrived.notify()
        return [sample.handle for sample in samples]

    def _sample(self, spec: SampleSpec, deadline: float | None) -> Sample:
        runner = self._loaded_for(spec).runner
        table = runner.table(spec)
        handle = Handle()
        sample = Sample(
            spec=spec,
            num_positions=len(table),
            handle=handle,
            guided=spec.guidance.active_range(table.timestep, table.sigma / table.alpha),
            inputs=self._prepared(runner, spec),
            deadline=deadline,
        )
        handle._sample = sample
        return sample

    def _prepared(self, runner: Runner, spec: SampleSpec) -> Inputs:
        try:
            return self._preparing.submit(runner.prepare, spec).result()
        except torch.OutOfMemoryError as error:
            raise _failure(error) from None
        except torch.AcceleratorError as error:
            with self._arrived:
                self._fault = self._fault or error
                self._arrived.notify()
            raise EngineDied(f"the device is lost: {error}") from error

    def generate(self, specs: Sequence[SampleSpec]) -> list[Image]:
        """Draw all `specs` together and wait for them.

        Raises:
            InvalidSpec: one of them can't be drawn.
            SampleFailed, EngineDied: one of them was not.
        """
        return results(self.submit_all(specs))

    def close(self) -> None:
        """Stop after the ticks in progress; whatever was on its way fails with `EngineDied`."""
        with self._arrived:
            self._closing = True
            self._arrived.notify()
        self._thread.join()

    def _loaded_for(self, spec: SampleSpec) -> _Loaded:
        if spec.pack not in self._loaded:
            raise InvalidSpec(f"no pack '{spec.pack}' is loaded; loaded: {', '.join(self._loaded)}")
        return self._loaded[spec.pack]

    def _run(self, packs: Sequence[str], ready: Future[None]) -> None:
        # The lanes have the cores: while they work, OpenMP threads of this one's own would only get in their way.
        compute_with(1)
        try:
            for name in packs:
                loaded = self._load(open_pack(name))
                self._loaded[loaded.pack.name] = loaded
        except BaseException as fatal:
            ready.set_exception(fatal)
            return
        if not self._unmeasured:
            self._measured.set()
        if self._may_measure:
            self._encode_probes()
        ready.set_result(None)
        self._serve()

    def _encode_probes(self) -> None:
        """Have the probes of packs encoded where prompts are, after those of callers who came before."""
        for loaded in self._unmeasured:
            loaded.probes = self._preparing.submit(loaded.networks.probes)
            loaded.probes.add_done_callback(self._wake)

    def _wake(self, _: object = None) -> None:
        with self._arrived:
            self._arrived.notify()

    def _load(self, pack: Pack) -> _Loaded:
        networks = self._load_networks(pack)
        by_rule = networks.by_rule
        calibration = self._calibrate(pack, by_rule) if self._calibrate is not None else by_rule
        runner = Runner(
            networks.denoiser,
            networks.steering,
            calibration,
            pack.scheduler_config,
            device=self.device,
            siblings=self._runners,
        )
        self._runners[pack.name] = runner
        try:
            runner.warm_up()
        except torch.OutOfMemoryError as error:
            rows = calibration.denoiser.sizes[0]
            raise InvalidPack(f"'{pack.name}': {self.device} has no memory for a batch of {rows} rows") from error
        key = calibration_key(pack, self.device, networks.by_rule)
        known = self._calibrations.load(key) if self._calibrate is None else None
        loaded = _Loaded(pack, networks, runner, Schedule(1), key, known, is_measured=self._calibrate is not None)
        self._tune(loaded, calibration)
        if not loaded.is_measured:
            self._unmeasured.append(loaded)
        return loaded

    def _tune(self, loaded: _Loaded, calibration: Calibration) -> None:
        """Have the pack run as calibrated; none of its ticks may be under way."""
        runner, schedule, network = loaded.runner, loaded.schedule, calibration.denoiser
        lanes, knee_s = calibration.layout.lanes, network.row_seconds(network.knee)
        of_classifier, classifier_cost = calibration.classifier, 0.0
        if of_classifier is not None:
            are_comparable = of_classifier.is_measured and network.is_measured
            classifier_cost = of_classifier.row_seconds(network.knee) / knee_s if are_comparable else 1.0
        with self._arrived:
            runner.calibration = calibration
            runner.max_batch = network.sizes[-1]
            schedule.row_budget, schedule.lanes = network.knee, lanes
            schedule.classifier_cost = classifier_cost
            schedule.few = max(FEW_ROWS * lanes, network.sizes[0])
            if calibration.is_measured:
                schedule.tick_s = lanes * knee_s  # row_seconds has every lane busy

    def _serve(self) -> None:
        error: BaseException = EngineDied("the engine was closed")
        try:
            while (turn := self._next_turn()) is not None:
                if turn == MEASURING:
                    self._measure()
                else:
                    self._dispatch(self._loaded[turn])
        except BaseException as fatal:
            error = fatal
            self._on_death(fatal)
            raise
        finally:
            with self._arrived:
                self._closing = True
            self._measured.set()  # nobody should wait for it any longer
            for one in self._loaded.values():
                one.runner.lanes.close()
            with self._arrived:
                everyone = [sample for one in self._loaded.values() for sample in one.schedule.evict_all()]
            for sample in everyone:
                for orphan in (sample, *sample.take_forks()):
                    orphan.take_handle()._future.set_exception(EngineDied(f"the engine stopped: {error}"))

    def _next_turn(self) -> str | None:
        """Whose turn it is, a pack's or `MEASURING`, as soon as it has a lane; `None` once the engine is closed."""
        with self._arrived:
            if not self._wait_for(lambda: bool(self._ready())):
                return None
            busy = [name for name, one in self._loaded.items() if not one.schedule.is_idle]
            turn = self._turns.next(self._ready(), busy=busy + self._to_measure())
            cores = CORES if turn == MEASURING else self._loaded[turn].lane_cores
            # Lanes that come free are kept for a pack that wants many: others would always find one first.
            has_lane = self._wait_for(lambda: cores <= CORES - self._cores_in_use)
            return turn if has_lane else None

    def _wait_for(self, condition: Callable[[], bool]) -> bool:
        """Wait, with the lock held; `False` where the engine is closed meanwhile.

        Raises:
            BaseException: the fault that ended a tick.
        """
        self._arrived.wait_for(lambda: self._closing or self._fault is not None or condition())
        if self._fault is not None:
            raise self._fault
        return not self._closing

    def _ready(self) -> list[str]:
        """Packs with samples at rest and fewer ticks than lanes, and `MEASURING`, if a core is free."""
        if self._cores_in_use >= CORES:
            return []
        packs = [name for name, one in self._loaded.items() if one.ticks < one.lanes and one.schedule.has_rest]
        return packs + self._to_measure()

    def _to_measure(self) -> list[str]:
        return [MEASURING] if self._may_measure and any(one.can_be_measured for one in self._unmeasured) else []

    def _measure(self) -> None:
        """Take a step of measuring the next pack that isn't measured yet; no tick is under way."""
        while not self._unmeasured[0].can_be_measured:
            self._unmeasured.rotate(-1)
        loaded, started = self._unmeasured[0], time.monotonic()
        try:
            if loaded.measuring is None:
                log.info("measuring %s between requests", loaded.pack.name)
                loaded.measuring = measuring(loaded.networks, loaded.probes.result(), loaded.runner.lanes, loaded.known)
            found, is_over = _next_of(loaded.measuring)
            if found is not None:
                self._tune(loaded, found)
                self._unmeasured.rotate(-1)  # soon every pack has some batches to use
            if is_over:
                self._end_measuring(loaded)
        except torch.AcceleratorError:
            raise
        except Exception:
            log.exception("measuring %s failed; it goes on as it is", loaded.pack.name)
            self._end_measuring(loaded)
        with self._arrived:
            self._turns.charge(MEASURING, (time.monotonic() - started) * CORES)

    def _end_measuring(self, loaded: _Loaded) -> None:
        calibration = loaded.runner.calibration
        log.info("measured %s: batches of up to %d rows", loaded.pack.name, calibration.denoiser.knee)
        if loaded.known is None and calibration.is_measured:  # beside the ticks: a store may let it wait
            threading.Thread(target=self._calibrations.save, args=(loaded.key, calibration), daemon=True).start()
        if self.device.type != "cpu":
            free_memory()  # of the largest batches, which no tick may ever need
        self._unmeasured.remove(loaded)
        loaded.measuring, loaded.is_measured = None, True
        if not self._unmeasured:
            self._measured.set()

    def _dispatch(self, loaded: _Loaded) -> None:
        """Start the pack's next tick: in a lane; or here, over all of them, where nobody could use the others."""
        schedule = loaded.schedule
        while given_up := self._given_up(schedule):  # again: their heirs may be given up too
            for sample in given_up:
                reason = SampleCancelled("cancelled") if sample.cancelled else DeadlineExceeded("not done in time")
                self._fail(loaded, sample, reason)
        with self._arrived:
            moving = schedule.take(now=time.monotonic())
            if not moving:
                return
            left = CORES - loaded.lane_cores
            others = any(one.lane_cores <= left and one.schedule.has_rest for one in self._loaded.values())
            in_lane = loaded.lanes > 1 and (self._cores_in_use > 0 or others)
            cores = loaded.lane_cores * (1 if in_lane else loaded.lanes)
            self._cores_in_use += cores
            loaded.ticks += 1
        if in_lane:
            loaded.runner.lanes.start(partial(self._tick, loaded, moving, OwnLane(), cores))
        else:
            # As many as a lane has, where the tick might as well be in one: sums over more threads may round otherwise.
            compute_with(loaded.lane_cores if loaded.lanes > 1 else 1)
            self._tick(loaded, moving, loaded.runner.lanes, cores)

    def _given_up(self, schedule: Schedule) -> list[Sample]:
        with self._arrived:
            return schedule.given_up(now=time.monotonic())

    def _tick(self, loaded: _Loaded, moving: list[Sample], lanes: Runs, cores: int) -> None:
        """Move the samples by one evaluation, and hand out those that are done."""
        runner, schedule = loaded.runner, loaded.schedule
        started = time.monotonic()
        fault: BaseException | None = None
        try:
            for sample in moving:
                if sample.state is None:
                    with self._failing_alone(loaded, sample):
                        runner.start(sample)
            begun = [sample for sample in moving if not sample.is_over]
            for samples, (data, are_finite) in self._attempted(loaded, begun, partial(self._evaluated, loaded, lanes)):
                self._moved(loaded, samples, data, are_finite, lanes)

            def drawn(samples: list[Sample]) -> list[Image]:
                return runner.pictures(samples, runner.latent(samples), lanes)

            done = [sample for sample in begun if sample.is_done and not sample.is_over]
            for samples, pictures in self._attempted(loaded, done, drawn):
                for sample, picture in zip(samples, pictures, strict=True):
                    with self._arrived:
                        schedule.remove(sample)
                    self._previews.pop(sample, None)
                    sample.take_handle()._future.set_result(picture)
        except BaseException as raised:
            fault = raised
        with self._arrived:
            schedule.put_back(moving)
            loaded.ticks -= 1
            self._cores_in_use -= cores
            self._fault = self._fault or fault
            self._turns.charge(loaded.pack.name, (time.monotonic() - started) * cores)
            self._arrived.notify()

    def _evaluated(self, loaded: _Loaded, lanes: Runs, samples: list[Sample]) -> tuple[Tensor, list[bool]]:
        """What a tick gives; where there is no memory for it, in smaller batches from then on."""
        limit = loaded.runner.max_batch
        try:
            return loaded.runner.tick(samples, lanes)
        except torch.OutOfMemoryError as error:
            if limit <= loaded.runner.calibration.denoiser.sizes[0]:  # none is smaller
                raise
            let_go(error)
        with self._arrived:
            if loaded.runner.max_batch == limit:  # no other lane has halved them meanwhile
                loaded.runner.max_batch //= 2
                least = loaded.runner.calibration.denoiser.sizes[0]
                loaded.schedule.row_budget = max(least, loaded.schedule.row_budget // 2)
        return self._evaluated(loaded, lanes, samples)

    def _attempted(
        self, loaded: _Loaded, samples: list[Sample], attempt: Callable[[list[Sample]], Result]
    ) -> Iterator[tuple[list[Sample], Result]]:
        """What an attempt gives for all samples, or, after a fault, for each alone; those at fault fail."""
        if not samples:
            return
        try:
            result = attempt(samples)
        except Exception as error:
            failure = _failure(error)
        else:
            yield samples, result
            return
        if len(samples) == 1:
            self._fail(loaded, samples[0], failure)
        else:
            for sample in samples:
                yield from self._attempted(loaded, [sample], attempt)

    def _moved(self, loaded: _Loaded, samples: list[Sample], data: Tensor, are_finite: list[bool], lanes: Runs) -> None:
        """Note that `samples` have moved; `data` is what each looks like so far."""
        for row, sample in enumerate(samples):
            sample.position += 1
            if sample.forks and sample.position == sample.fork_position:
                self._fork(loaded, sample)
            if not are_finite[row]:
                self._fail(
                    loaded, sample, SampleFailed(f"the picture became NaN or infinite at step {sample.position}")
                )
            elif (every := sample.spec.preview_every) and sample.position % every == 0 and sample in self._previews:
                with self._failing_alone(loaded, sample):
                    [picture] = loaded.runner.pictures([sample], data[row : row + 1], lanes)
                    self._previews[sample](sample.position, picture)

    @contextmanager
    def _failing_alone(self, loaded: _Loaded, sample: Sample) -> Iterator[None]:
        """A fault in here is the sample's alone."""
        try:
            yield
        except Exception as error:
            self._fail(loaded, sample, _failure(error))

    def _fork(self, loaded: _Loaded, trunk: Sample) -> None:
        """Queue the trunk's forks, which go on from where it is now."""
        with self._arrived:
            for sample in trunk.take_forks():
                sample.position, sample.state, sample.trace = trunk.position, trunk.state, list(trunk.trace)
                loaded.schedule.enqueue(sample, now=time.monotonic())
            self._arrived.notify()

    def _fail(self, loaded: _Loaded, sample: Sample, error: SampleFailed) -> None:
        with self._arrived:
            loaded.schedule.remove(sample)
            for heir in share_prefixes(sample.take_forks()):  # they do what they counted on the failed one for
                loaded.schedule.enqueue(heir, now=time.monotonic())
            self._arrived.notify()
        self._previews.pop(sample, None)
        sample.take_handle()._future.set_exception(error)
