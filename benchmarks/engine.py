"""`python -m benchmarks.engine`: run the mixed stream through the engine alone, as a share of the offline bound."""

from __future__ import annotations

import argparse
import asyncio
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from benchmarks.bound import OfflineBound
from benchmarks.load import closed_loop
from benchmarks.packs import add_pack_options, benchmark_pack
from benchmarks.stream import Asked, mixed_stream
from models.engine import Engine
from models.pack import Pack
from models.spec import Guidance, SampleSpec


def specs_of(asked: Asked, pack: Pack) -> list[SampleSpec]:
    """One spec per picture."""
    scale = asked.scale or 0.0
    guidance = {
        "none": Guidance(),
        "classifier_free": Guidance(free_scale=scale),
        "classifier": Guidance(classifier_scale=scale),
    }[asked.mode]
    return [
        SampleSpec(
            pack=pack.name,
            label=asked.label,
            prompt=asked.prompt,
            guidance=guidance,
            sampler=asked.sampler,
            steps=asked.steps,
            seed=asked.seed,
            image_index=index,
            group=str(asked.seed),
            clip=not pack.has("vae"),
            profile=pack.defaults.get("profile", "cynosure"),
        )
        for index in range(asked.count)
    ]


class EngineAlone:
    """The engine in this process, each of whose clients has a thread."""

    name = "engine"

    def __init__(self, engine: Engine, pack: Pack, clients: int) -> None:
        self._engine, self._pack = engine, pack
        self._threads = ThreadPoolExecutor(clients)

    async def draw(self, http: httpx.AsyncClient, asked: Asked) -> int:
        loop = asyncio.get_running_loop()
        return len(await loop.run_in_executor(self._threads, self._engine.generate, specs_of(asked, self._pack)))

    def cpu_seconds(self) -> dict[str, float]:
        return {self.name: time.process_time()}

    def peak_mib(self) -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print pictures/s, shares of the offline bound and of the peak, what of the rows was padding, and p50 and p95."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=main.__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=120, help="that count (default: %(default)s)")
    add_pack_options(parser)
    arguments = parser.parse_args()
    pack, clients = benchmark_pack(arguments.pack), arguments.clients
    bound = OfflineBound(pack, arguments.device)
    bound.measure()
    with Engine([str(pack.folder)], device=str(arguments.device)) as engine:
        engine.wait_until_measured()
        alone, stream = EngineAlone(engine, pack, clients), mixed_stream(pack, seed=clients)
        result = asyncio.run(closed_loop(alone, stream, clients, requests=arguments.requests))
        tally = engine.packs[pack.name].tally
        padding = tally.padding / (tally.padding + sum(rows.total for rows in tally.rows.values()))
    bound.measure()
    of_bound = bound.seconds(result.parts) / result.seconds
    of_peak = bound.share_of_peak(result.parts, result.seconds)
    print(
        f"{result.load}: {result.pictures_per_s:.2f} pictures/s, {of_bound:.2f} of the bound, "
        f"{of_peak:.2f} of the peak, {padding:.1%} of the rows padding, "
        f"p50 {result.quantile(0.5):.2f} s, p95 {result.quantile(0.95):.2f} s"
    )


if __name__ == "__main__":
    main()
