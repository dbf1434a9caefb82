"""`python -m benchmarks.sizes`: pictures of three sizes mixed, against the same pictures grouped by size.

It also shows the host's time: what a tick takes besides its networks.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar
from unittest import mock

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig

from benchmarks.packs import random_stable_diffusion
from models.engine import Engine, runner
from models.pack import open_pack
from models.spec import Guidance, SampleSpec

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

SIZES = ((32, 32), (24, 48), (48, 24))  # (height, width)
STEPS = (6, 8, 10, 12)
MEASURED_S = 600.0


def small_stable_diffusion(folder: Path) -> None:
    """Write a Stable Diffusion 1 folder with small networks, random weights and latents of half the picture's side."""
    channels = (16, 32)
    random_stable_diffusion(
        folder,
        unet=UNet2DConditionModel(
            sample_size=16,
            block_out_channels=channels,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=8,
            layers_per_block=1,
        ),
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
        ),
        text=CLIPTextConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=0,
            eos_token_id=1,
        ),
    )


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


def specs(pack: str, number: int) -> list[SampleSpec]:
    """`number` pictures of every size, interleaved; each is a job of its own."""
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
            group=f"{index} {height}",
            clip=False,
        )
        for index in range(number)
        for height, width in SIZES
    ]


def wait_until_measured(engine: Engine, pack: str) -> None:
    """Wait until batches of every size are measured.

    Raises:
        TimeoutError: they are not after `MEASURED_S`.
    """
    until = time.monotonic() + MEASURED_S
    engine.wait_until_measured(MEASURED_S)
    engine.generate(specs(pack, 1))  # the other sizes are measured once they were asked for
    while engine.is_measuring:
        if time.monotonic() > until:
            raise TimeoutError("the sizes were not measured")
        time.sleep(0.1)


def seconds(engine: Engine, batches: Sequence[Sequence[SampleSpec]]) -> float:
    """Time to draw the batches one after the other."""
    started = time.perf_counter()
    for batch in batches:
        engine.generate(batch)
    return time.perf_counter() - started


def main() -> None:
    """Print the ratio of both times, and the host's share of a tick."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizes", description=main.__doc__)
    parser.add_argument("--pictures", type=int, default=8, help="of each size")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cores", type=int, default=1, help="with one, the host's time is all that is not network")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        small_stable_diffusion(Path(folder, "small"))
        pack = open_pack(str(Path(folder, "small")))
        with Engine([pack], cores=arguments.cores) as engine:
            wait_until_measured(engine, pack.name)
            report(engine, specs(pack.name, arguments.pictures), rounds=arguments.rounds, cores=arguments.cores)


def report(engine: Engine, mixed: Sequence[SampleSpec], *, rounds: int, cores: int) -> None:
    grouped = [[spec for spec in mixed if (spec.height, spec.width) == size] for size in SIZES]
    ratios, taken, networks = list[float](), 0.0, NetworkTime()
    for number in range(rounds):
        by_size = 0.0 if number % 2 else seconds(engine, grouped)
        with networks.counting():
            together = seconds(engine, [mixed])
        by_size = by_size or seconds(engine, grouped)
        taken += together
        ratios.append(by_size / together)
    low, _, high = statistics.quantiles(ratios, n=4)
    print(
        f"three sizes mixed: {statistics.median(ratios):.2f} of the rate of the same pictures grouped by size "
        f"(quartiles {low:.2f} and {high:.2f}, {rounds} rounds in turns)"
    )
    if cores == 1:
        tick_ms = 1000 * taken / networks.ticks
        print(f"host: {1 - networks.seconds / taken:.1%} of {tick_ms:.1f} ms a tick")


if __name__ == "__main__":
    main()
