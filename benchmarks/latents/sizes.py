"""`python -m benchmarks.latents.sizes`: pictures of three sizes mixed, against the same pictures grouped by size.

It also shows the host's time: what a tick takes besides its networks.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ParamSpec, TypeVar
from unittest import mock

from benchmarks.packs import add_pack_options, benchmark_pack
from harness.processes import wait_until
from models.engine import Engine, runner
from models.spec import Guidance, SampleSpec

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

SHAPES = ((1, 1), (1, 1.5), (1.5, 1))  # height and width of pictures, as factors of the pack's own
STEPS = (6, 8, 10, 12)
MEASURED_S = 600.0


class NetworkTime:
    """Counts ticks, and the time in their networks and decoders.

    Attributes:
        seconds: in calls of networks, while `counting`.
        ticks: ticks, while `counting`.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.ticks = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        with (
            mock.patch.object(runner, "evaluated", self._timed(runner.evaluated, ticks=1)),
            mock.patch.object(runner.Runner, "pictures", self._timed(runner.Runner.pictures, ticks=0)),
        ):
            yield

    def _timed(self, call: Callable[Arguments, Result], *, ticks: int) -> Callable[Arguments, Result]:
        def timed(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            started = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started
                self.ticks += ticks

        return timed


def specs(pack: str, sizes: Sequence[tuple[int, int]], number: int) -> list[SampleSpec]:
    """`number` pictures of every (height, width), interleaved; each is a job of its own."""
    return [
        SampleSpec(
            pack=pack,
            prompt="a",
            guidance=Guidance(free_scale=4.0),
            sampler="euler",
            steps=STEPS[index % len(STEPS)],
            seed=index,
            height=height,
            width=width,
            group=f"{index} {height} {width}",
            clip=False,
        )
        for index in range(number)
        for height, width in sizes
    ]


def wait_until_measured(engine: Engine, pack: str, sizes: Sequence[tuple[int, int]]) -> None:
    """Wait until batches of every size are measured: the pack's own first, the others once they were asked for."""
    engine.wait_until_measured()
    engine.generate(specs(pack, sizes, 1))
    wait_until(lambda: not engine.is_measuring, seconds=MEASURED_S, what="all sizes are measured")


def seconds(engine: Engine, batches: Sequence[Sequence[SampleSpec]]) -> float:
    """Time to draw the batches one after the other."""
    started = time.perf_counter()
    for batch in batches:
        engine.generate(batch)
    return time.perf_counter() - started


def main() -> None:
    """Print the ratio of both times, and the host's share of a tick."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latents.sizes", description=main.__doc__)
    add_pack_options(parser)
    parser.set_defaults(pack="sd-tiny")
    parser.add_argument("--pictures", type=int, default=8, help="of each size")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    pack = benchmark_pack(arguments.pack)
    ratios, taken, networks = list[float](), 0.0, NetworkTime()
    with Engine([pack], device=str(arguments.device), cores=1) as engine:  # with one, what is not network is the host's
        height, width = engine.packs[pack.name].denoiser.picture_size
        sizes = [(round(high * height), round(wide * width)) for high, wide in SHAPES]
        wait_until_measured(engine, pack.name, sizes)
        mixed = specs(pack.name, sizes, arguments.pictures)
        grouped = [[spec for spec in mixed if (spec.height, spec.width) == size] for size in sizes]
        for number in range(arguments.rounds):
            by_size = 0.0 if number % 2 else seconds(engine, grouped)
            with networks.counting():
                together = seconds(engine, [mixed])
            taken += together
            ratios.append((by_size or seconds(engine, grouped)) / together)
    low, _, high = statistics.quantiles(ratios, n=4)
    print(
        f"three sizes mixed: {statistics.median(ratios):.2f} of the rate of the same pictures grouped by size "
        f"(quartiles {low:.2f} and {high:.2f}; {arguments.rounds} rounds in turns)"
    )
    tick_ms, share = 1000 * taken / networks.ticks, 1 - networks.seconds / taken
    print(f"host: {share * tick_ms:.2f} ms of {tick_ms:.1f} ms a tick, {share:.1%}")


if __name__ == "__main__":
    main()
