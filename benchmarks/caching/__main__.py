"""`python -m benchmarks.caching`: pictures with a step cache against the same without, turn by turn in one engine."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from benchmarks.packs import add_pack_options, benchmark_pack
from models.engine import Engine
from models.pack import Pack
from models.spec import Guidance, SampleSpec, StepCache


def specs_of(pack: Pack, *, pictures: int, steps: int, scale: float | None) -> list[SampleSpec]:
    takes_prompt = not pack.labels or pack.has("text_encoder")
    return [
        SampleSpec(
            pack=pack.name,
            label=number % len(pack.labels) if pack.labels else None,
            prompt="a red cat" if takes_prompt else None,
            guidance=Guidance(free_scale=scale),
            sampler=str(pack.defaults.get("sampler", "ddim")),
            steps=steps,
            seed=number,
            clip=not pack.has("vae"),
        )
        for number in range(pictures)
    ]


class Turn(NamedTuple):
    """What pictures took: seconds on the clock, and of the cores, which other work on the machine hardly changes."""

    clock: float
    cores: float


def taken(engine: Engine, specs: Sequence[SampleSpec]) -> Turn:
    clock, cores = time.perf_counter(), time.process_time()
    engine.generate(specs)
    return Turn(time.perf_counter() - clock, time.process_time() - cores)


def compared(plain: Sequence[float], cached: Sequence[float]) -> str:
    """The ratios of turns: their median, and how far they are apart."""
    ratios = [before / after for before, after in zip(plain, cached, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    """Print the deep blocks' share of FLOP, pictures per second, and how many times as fast the cached ones are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.caching", description=main.__doc__)
    parser.add_argument("--every", type=int, nargs="+", default=[2, 3, 5])
    parser.add_argument("--until", type=float, default=1.0)
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--scale", type=float, help="classifier-free; none by default")
    parser.add_argument("--turns", type=int, default=5)
    add_pack_options(parser)
    arguments = parser.parse_args()
    pack = benchmark_pack(arguments.pack)
    plain = specs_of(pack, pictures=arguments.pictures, steps=arguments.steps, scale=arguments.scale)
    with Engine([str(pack.folder)], device=str(arguments.device)) as engine:
        engine.wait_until_measured()
        network = engine.packs[pack.name].calibration.denoiser
        print(f"deep blocks: {1 - network.reused_share:.1%} of {network.row_flop / 1e9:.2f} GFLOP a row", flush=True)
        for every in arguments.every:
            cached = [replace(spec, cache=StepCache(every, arguments.until)) for spec in plain]
            [of_plain], [of_cached] = ([engine.outline(specs[:1]).flop] for specs in (plain, cached))
            taken(engine, cached)  # kernels are made at the first call
            turns = [(taken(engine, plain), taken(engine, cached)) for _ in range(arguments.turns)]
            before, after = zip(*turns, strict=True)
            rates = [arguments.pictures / statistics.median(turn.clock for turn in way) for way in (before, after)]
            print(
                f"every {every}: {rates[0]:.2f} pictures/s without, {rates[1]:.2f} with: times "
                f"{compared([turn.clock for turn in before], [turn.clock for turn in after])} by the clock, "
                f"{compared([turn.cores for turn in before], [turn.cores for turn in after])} by the cores' time, "
                f"{(of_plain or 0) / (of_cached or 1):.2f} by FLOP",
                flush=True,
            )


if __name__ == "__main__":
    main()
