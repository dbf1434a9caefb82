"""What a tick takes besides its networks: theirs are replaced by functions that take no time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.engine import specs_of
from benchmarks.stream import mixed_stream, plain
from models.calibration import Calibration
from models.calibration.probes import CPU_SIZES
from models.calibration.result import BatchSize, NetworkCalibration
from models.engine import Engine
from models.engine.loaded import LoadedPack
from models.engine.sample import Sample
from models.engine.tick import Tick
from models.lanes import InlineLane, set_thread_count
from models.pack import Pack
from models.spec import SampleSpec

STEPS, ROWS = 100, 24
ROUNDS = 5


@dataclass(frozen=True)
class HostCost:
    """What ticks take besides their networks.

    Attributes:
        ms: of a thread's processor time, the median of many ticks.
        operators: of torch in one of them.
    """

    ms: float
    operators: int


def host_costs(pack: Pack) -> dict[str, HostCost]:
    """The cost of a tick, by what is in it."""
    set_thread_count(1)
    with Engine([str(pack.folder)], calibrate=lambda _, by_rule: _batched(by_rule)) as engine:
        loaded = engine.packs[pack.name]
        loaded.denoiser.forward = lambda x, timesteps, conditioning: x
        if loaded.runner.steering is not None:
            loaded.runner.steering.gradient = lambda x, timesteps, conditioning: (x, timesteps)
        alike = specs_of(plain(pack, 0, steps=STEPS, count=ROWS), pack)
        contents = {"1 row": alike[:1], f"{ROWS} rows, alike": alike, f"{ROWS} rows, mixed": _mixed(pack)}
        return {name: _cost(engine, loaded, specs) for name, specs in contents.items()}


def _batched(by_rule: Calibration) -> Calibration:
    """With one batch for each network of a tick, as where nothing is measured its rows would run alone."""

    def batched(network: NetworkCalibration) -> NetworkCalibration:
        sizes = [BatchSize(rows=rows, row_ms=1 + 1 / rows, bits="") for rows in (*CPU_SIZES, ROWS)]
        return replace(network, reference=1, measured=tuple(sizes))

    classifier = by_rule.classifier
    return replace(
        by_rule,
        denoiser=batched(by_rule.denoiser),
        classifier=None if classifier is None else batched(classifier),
    )


def _mixed(pack: Pack) -> list[SampleSpec]:
    """Samples of the mixed stream, of `STEPS` steps, that have `ROWS` denoiser rows together or one less."""
    chosen: list[SampleSpec] = []
    rows = 0
    for asked in mixed_stream(pack, seed=32):
        for spec in specs_of(replace(asked, steps=STEPS, count=1), pack):
            rows += len(spec.guidance.rows(active=True))
            if rows > ROWS:
                return chosen
            chosen.append(spec)
    raise AssertionError("the stream has no end")


def _cost(engine: Engine, loaded: LoadedPack, specs: Sequence[SampleSpec]) -> HostCost:
    taken = []
    for _ in range(ROUNDS):
        samples = [Sample.begin(course) for course in engine._courses(specs)]
        for _ in range(STEPS - 1):
            started = time.thread_time()
            Tick(loaded, samples).run(InlineLane())
            taken.append(time.thread_time() - started)
    with _Counted() as counted:
        Tick(loaded, samples).run(InlineLane())
    return HostCost(statistics.median(taken) * 1e3, counted.operators)


class _Counted(TorchDispatchMode):
    """Counts the operators that are called inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        return operator(*args, **(kwargs or {}))
