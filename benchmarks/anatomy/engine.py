"""Parts of the engine's time, for one picture alone and for a full house."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.anatomy.stopwatch import Stopwatch
from benchmarks.engine import specs_of
from benchmarks.stream import mixed_stream, plain
from models.engine import Engine, runner
from models.engine.tick import Decoding, Tick
from models.engine.work import Work
from models.lanes import CORES
from models.pack import Pack

PARTS = ("denoiser", "classifier", "decoder", "gather", "noise", "guidance", "update", "rest of the tick", "loop")
WAITING = "threads that wait"


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """What a load's time was spent in.

    Attributes:
        load: what was drawn.
        cores: those that it could use: one picture alone has a row at a time.
        seconds: on the clock.
        evaluations: of samples.
        ticks: of the engine.
        parts: thread seconds by part; with the time in which threads waited, they are the cores times `seconds`.
    """

    load: str
    cores: int
    seconds: float
    evaluations: int
    ticks: int
    parts: dict[str, float]


def watch(engine: Engine, pack: str) -> Stopwatch:
    """Time the parts of the engine and of its pack."""
    watch, loaded = Stopwatch(), engine.packs[pack]
    watch.time(loaded.denoiser, "forward", "denoiser")
    if loaded.runner.steering is not None:
        watch.time(loaded.runner.steering, "gradient", "classifier")
    watch.time(loaded.runner, "pictures", "decoder")
    watch.time(loaded.runner, "_step_noise", "noise")
    watch.time(loaded.runner, "_advanced", "update")
    for name, part in (("gather", "gather"), ("work_of", "gather"), ("combine", "guidance"), ("effects", "guidance")):
        watch.time(runner, name, part)
    watch.time(loaded.runner, "_predictions", "guidance")
    watch.time(Work, "_padded", "gather")
    for kind in (Tick, Decoding):
        watch.time(kind, "run", "rest of the tick")
    watch.time(engine._loop, "_run", "loop")
    return watch


def measured(load: str, watch: Stopwatch, draw: Callable[[], int], *, cores: int) -> Anatomy:
    """The anatomy of what `draw` does; it returns its evaluations."""
    draw()
    watch.reset()
    started = time.perf_counter()
    evaluations = draw()
    seconds = time.perf_counter() - started
    parts = {part: watch.seconds(part) for part in PARTS}
    return Anatomy(
        load=load, cores=cores, seconds=seconds, evaluations=evaluations, ticks=watch.calls("loop"), parts=parts
    )


def anatomies(pack: Pack, *, pictures: int, house: int) -> list[Anatomy]:
    """Of some pictures, one after the other, and of a house full of mixed samples."""
    with Engine([str(pack.folder)]) as engine:
        engine.wait_until_measured()
        watched = watch(engine, pack.name)

        def alone() -> int:
            asked = [plain(pack, number, steps=20) for number in range(pictures)]
            for one in asked:
                engine.generate(specs_of(one, pack))
            return 20 * pictures

        def full() -> int:
            specs = (spec for asked in mixed_stream(pack, seed=32) for spec in specs_of(asked, pack))
            some = list(itertools.islice(specs, house))
            engine.generate(some)
            return sum(engine.evaluations(spec) for spec in some)

        return [
            measured("one picture", watched, alone, cores=1),
            measured("a full house", watched, full, cores=CORES),
        ]
