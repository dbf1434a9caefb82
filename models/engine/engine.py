"""The engine's public interface."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch

from models.adapters import AdapterFolders
from models.calibration import (
    Calibration,
    Calibrations,
    FileCalibrations,
    Networks,
    calibration_key,
    load_networks,
)
from models.calibration.networks import free_memory, only_float32
from models.engine.errors import EngineDied, PackInUse, failure_of
from models.engine.loaded import LoadedPack
from models.engine.loop import Loop
from models.engine.measurement import Measurement
from models.engine.outline import Outline, outline
from models.engine.preparing import Asked, PreparingThread
from models.engine.preparing.labels import with_class_index
from models.engine.runner import Runner
from models.engine.sample import Course, Handle, Image, Inputs, Sample
from models.lanes import CORES, ran_out_of_memory, set_thread_count
from models.loading import device_named, opening
from models.pack import InvalidPack, Pack, open_packs
from models.spec import InvalidSpec, LongPrompt, SampleSpec

Preview = Callable[[int, int, Image], None]
"""Called with the picture's index in its submission, the number of evaluations done, and the picture so far."""


def results(handles: Sequence[Handle]) -> list[Image]:
    """Wait for all pictures, or for the first that fails.

    Raises:
        SampleFailed: or a subclass.
    """
    futures = [handle.future for handle in handles]
    wait(futures, return_when=FIRST_EXCEPTION)
    for future in futures:
        if future.done():
            future.result()
    return [future.result() for future in futures]


class Engine:
    """Draws the pictures of all callers in shared batches.

    Samples join at any tick and leave as soon as they are done. On a device with several lanes each lane ticks
    independently, so that none waits for another. Use the engine as a context manager, or call `close`.

    Args:
        packs: opened packs, names of bundled packs, folders, or `owner/name@COMMIT` on the hub.
        device: torch device.
        precision: number format of the networks, one of `models.calibration.networks.PRECISIONS`; by default the rules
            choose it.
        encoder_precision: number format of text encoders and autoencoders, likewise.
        quantize: "int8" for int8 weights, as for `load_networks`.
        offloaded: whether weights stay in the host's memory, as for `load_networks`.
        compiled: whether `torch.compile` makes their kernels.
        loras: folder of LoRAs that specs may name; files may come and go while it is served.
        controls: folder of ControlNets that specs may name, each as diffusers saves it.
        cores: threads that compute at once; by default all that the environment allows.
        measure_at_once: start measuring immediately; otherwise measuring starts when `measure` is called.
        calibrations: store of earlier measurements; by default the user's cache folder. The engine measures whatever is
            missing while it serves, between ticks; that changes how soon pictures are done, but not their bytes.
        calibrate: takes a pack and its calibration by rule, and returns the calibration to use instead of measuring.
        on_death: called on the engine's thread when that thread, or a lane, fails with an error that no sample caused.

    Raises:
        InvalidPack: a pack does not exist or is invalid, or two have the same name.
        InvalidDevice: the device does not exist.

    Example:
        >>> with Engine(["fashion"]) as engine:
        ...     handle = engine.submit(SampleSpec(pack="fashion", label=7, steps=20))
        ...     picture = handle.result()
    """

    def __init__(
        self,
        packs: Sequence[str | Pack],
        *,
        device: str = "cpu",
        precision: str = "auto",
        encoder_precision: str = "auto",
        quantize: str | None = None,
        offloaded: bool = False,
        compiled: bool = False,
        loras: Path | None = None,
        controls: Path | None = None,
        cores: int = CORES,
        measure_at_once: bool = True,
        calibrations: Calibrations | None = None,
        calibrate: Callable[[Pack, Calibration], Calibration] | None = None,
        on_death: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.device = device_named(device)
        # diffusers and transformers read other formats under a default dtype, which is one for all threads.
        self._reads_aside = only_float32(self.device, precision, encoder_precision)
        opened = open_packs(packs)
        self._runners: dict[str, Runner] = {}
        self._load_networks = partial(
            load_networks,
            device=self.device,
            precision=precision,
            encoder_precision=encoder_precision,
            quantize=quantize,
            offloaded=offloaded,
            compiled=compiled,
        )
        self._adapters = AdapterFolders.at(loras=loras, controls=controls)
        self._calibrate = calibrate
        self._measurement = Measurement(calibrations if calibrations is not None else FileCalibrations())
        self._loop = Loop(self._measurement, cores=cores, on_death=on_death)
        self._preparing = PreparingThread(f"preparing-{device}")
        ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(opened, measure_at_once, ready), name=f"engine-{device}", daemon=True
        )
        self._thread.start()
        ready.result()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def packs(self) -> Mapping[str, LoadedPack]:
        """The loaded packs by name."""
        return MappingProxyType(self._loop.packs)

    @property
    def busy_ratio(self) -> float:
        """The share of the device that ticks have used in the last half minute, 0 to 1; measuring does not count."""
        return self._loop.load.ratio

    def add(self, pack: Pack) -> None:
        """Load one more pack, and wait until it can be drawn with, while the others draw.

        Only its first batches, which create kernels, take a turn of the others. If its networks may have another number
        format than float32, the others wait while its weights are read, too.

        Raises:
            InvalidPack: it can't be served, or a pack of its name is loaded.
            EngineDied: the engine has ended.
        """
        if pack.name in self.packs:
            raise InvalidPack(f"a pack called '{pack.name}' is loaded already")
        if self._reads_aside:
            with opening(pack), ThreadPoolExecutor(1, initializer=set_thread_count, initargs=(1,)) as reading:
                read = reading.submit(self._read, pack).result()
            self._loop.call(lambda: self._install(*read))
        else:
            self._loop.call(lambda: self._read_and_install(pack))

    def remove(self, name: str) -> None:
        """Unload a pack, and give its memory back. It must not have unfinished pictures, nor guide another's.

        Raises:
            PackInUse: it has.
            KeyError: no such pack is loaded.
            EngineDied: the engine has ended.
        """
        self._loop.call(lambda: self._uninstall(name))
        free_memory()

    def measure(self) -> None:
        """Start measuring, between ticks, the packs that aren't measured yet."""
        with suppress(EngineDied):
            self._loop.call(lambda: self._measurement.allow(self._preparing.executor, self._loop.wake))

    def wait_until_measured(self, timeout: float | None = None) -> bool:
        """Wait until every pack has been measured; `False` if the timeout passes or the engine ends first."""
        return self._measurement.wait(timeout) and all(loaded.is_measured for loaded in self.packs.values())

    @property
    def is_measuring(self) -> bool:
        """Whether a pack is left to be measured, at its own size or at another that was asked for."""
        return self._measurement.is_unfinished

    def evaluations(self, spec: SampleSpec) -> int:
        """Network evaluations that `spec` takes."""
        return len(self._loaded_for(spec).runner.preparation.table(spec))

    def outline(self, specs: Sequence[SampleSpec]) -> Outline:
        """Estimate the cost of drawing `specs`, which differ only in their seeds; errors are those of `submit`."""
        [course] = self._courses(specs[:1])
        return outline(self._loaded_for(specs[0]).runner, course, pictures=len(specs))

    def submit(self, spec: SampleSpec, *, timeout: float | None = None, on_preview: Preview | None = None) -> Handle:
        """Queue one picture.

        Args:
            spec: what to draw.
            timeout: seconds from now after which the picture is abandoned.
            on_preview: called on one of the engine's threads every `spec.preview_every` evaluations; must be quick.

        Raises:
            InvalidSpec: the spec can't be drawn by its pack.
            OutOfMemory: the device had no memory to encode its prompt or initial picture.
            EngineDied: the engine has ended.
        """
        [handle] = self.submit_all([spec], timeout=timeout, on_preview=on_preview)
        return handle

    def submit_all(
        self, specs: Sequence[SampleSpec], *, timeout: float | None = None, on_preview: Preview | None = None
    ) -> list[Handle]:
        """Queue pictures together, all or none; arguments and errors are those of `submit`.

        Pictures that differ only in their guidance scales share the evaluations before their guidance interval; only
        the first of them has previews of those evaluations.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        samples = [
            Sample.begin(
                course,
                deadline=deadline,
                on_preview=None if on_preview is None else partial(on_preview, index),
            )
            for index, course in enumerate(self._courses(specs))
        ]
        by_pack: dict[str, list[Sample]] = {}
        for sample in samples:
            by_pack.setdefault(sample.course.spec.pack, []).append(sample)
        self._loop.enqueue(by_pack)
        if self._calibrate is None:
            for sample in samples:
                self._measurement.want(self.packs[sample.course.spec.pack], sample.course)
        return [Handle(sample.promise) for sample in samples]

    def check(self, specs: Sequence[SampleSpec]) -> None:
        """Check specs that differ only in their prompts, without preparing their networks' inputs.

        Raises:
            InvalidPrompt: a prompt is too long and is to be refused, or can't be read as weighted.
            InvalidSpec, NotLinear, InvalidRespacing: the sampler can't take the steps, or no such pack is loaded.
        """
        preparation = self._loaded_for(specs[0]).runner.preparation
        preparation.table(specs[0])
        for spec in specs:
            if spec.weighted or spec.long_prompt is LongPrompt.REFUSE:
                self._preparing.executor.submit(preparation.readings, spec).result()

    def generate(self, specs: Sequence[SampleSpec]) -> list[Image]:
        """Draw all `specs` together and wait for them.

        Raises:
            InvalidSpec: one of them can't be drawn.
            SampleFailed, EngineDied: one of them failed.
        """
        return results(self.submit_all(specs))

    def close(self) -> None:
        """Stop after the ticks in progress; unfinished pictures fail with `EngineDied`."""
        self._loop.end()
        self._thread.join()

    def _loaded_for(self, spec: SampleSpec) -> LoadedPack:
        if spec.pack not in self.packs:
            raise InvalidSpec(f"no pack '{spec.pack}' is loaded; loaded: {', '.join(self.packs)}")
        loaded = self.packs[spec.pack]
        loaded.runner.preparation.check(spec)
        return loaded

    def _courses(self, specs: Sequence[SampleSpec]) -> list[Course]:
        loaded = [self._loaded_for(spec) for spec in specs]
        asked = [
            (each.runner.preparation, with_class_index(spec, each.pack.labels))
            for each, spec in zip(loaded, specs, strict=True)
        ]
        prepared = zip(asked, self._prepared(asked), strict=True)
        return [preparation.course(spec, inputs) for (preparation, spec), inputs in prepared]

    def _prepared(self, asked: Sequence[Asked]) -> list[Inputs]:
        try:
            return self._preparing.prepare(asked)
        except RuntimeError as error:
            if ran_out_of_memory(error):
                raise failure_of(error) from None
            if isinstance(error, torch.AcceleratorError):
                self._loop.end(fault=error)
                raise EngineDied(f"the device is lost: {error}") from error
            raise

    def _run(self, packs: Sequence[Pack], measure_at_once: bool, ready: Future[None]) -> None:
        # The lanes occupy the cores: extra OpenMP threads for this thread would only compete with them.
        set_thread_count(1)
        try:
            for pack in packs:
                self._read_and_install(pack)
        except BaseException as fatal:
            ready.set_exception(fatal)
            return
        if measure_at_once:
            self._measurement.allow(self._preparing.executor, self._loop.wake)
        ready.set_result(None)
        self._loop.serve()

    def _read_and_install(self, pack: Pack) -> None:
        with opening(pack):
            read = self._read(pack)
        self._install(*read)

    def _read(self, pack: Pack) -> tuple[Networks, str, Calibration | None]:
        """The pack's networks, the key of their calibration, and what is known under it."""
        networks = self._load_networks(pack)
        key = calibration_key(pack, self.device, networks.by_rule)
        return networks, key, self._measurement.known(key) if self._calibrate is None else None

    def _install(self, networks: Networks, key: str, known: Calibration | None) -> None:
        pack, is_fixed = networks.pack, self._calibrate is not None
        calibration = self._calibrate(pack, networks.by_rule) if self._calibrate is not None else networks.by_rule
        with opening(pack):
            loaded = LoadedPack.load(
                networks, calibration, self._runners, self._loop.lock, is_measured=is_fixed, adapters=self._adapters
            )
        self._runners[pack.name] = loaded.runner
        if not is_fixed:
            self._measurement.add(loaded, key, known)
        with self._loop.lock:
            self._loop.packs[pack.name] = loaded

    def _uninstall(self, name: str) -> None:
        loaded = self.packs[name]
        with self._loop.lock:
            if not loaded.schedule.is_idle or any(other.is_guided_by(name) for other in self.packs.values()):
                raise PackInUse(f"pack '{name}' has unfinished pictures")
            del self._loop.packs[name]
        del self._runners[name]
        self._measurement.remove(loaded)
        loaded.runner.lanes.close()
