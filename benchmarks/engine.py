"""`python -m benchmarks.engine`: run the mixed stream through the engine alone, as a share of the offline bound."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from benchmarks.bound import OfflineBound
from benchmarks.load import Answered, Measured
from benchmarks.packs import add_pack_options, benchmark_pack
from benchmarks.stream import Asked, mixed_stream
from models.engine import Engine
from models.pack import Pack
from models.spec import Guidance, SampleSpec

WARM_UP_S = 15.0


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


def load(engine: Engine, pack: Pack, stream: Iterator[Asked], *, clients: int, seconds: float) -> Measured:
    """Measure a window of `seconds`, with the same load before and after it."""
    start = time.monotonic() + WARM_UP_S
    result = Measured("engine", f"{clients} clients", start, start + seconds)
    lock, unfinished = threading.Lock(), 0  # requests that were sent before the window's end

    def client() -> None:
        nonlocal unfinished
        while True:
            with lock:
                counts = time.monotonic() < result.end
                if not counts and not unfinished:
                    return
                unfinished += counts
                asked = next(stream)
            sent = time.monotonic()
            try:
                engine.generate(specs_of(asked, pack))
            finally:
                with lock:
                    unfinished -= counts
            result.answered.append(Answered(asked, sent, time.monotonic()))

    with ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(client) for _ in range(clients)]:
            future.result()
    return result


def main() -> None:
    """Print pictures per second, shares of the offline bound and of the peak, and the p50 and p95 latencies."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=main.__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    add_pack_options(parser)
    arguments = parser.parse_args()
    pack, clients = benchmark_pack(arguments.pack), arguments.clients
    bound = OfflineBound(pack, arguments.device)
    bound.measure()
    with Engine([str(pack.folder)], device=str(arguments.device)) as engine:
        engine.wait_until_measured()
        result = load(engine, pack, mixed_stream(pack, seed=clients), clients=clients, seconds=arguments.seconds)
    bound.measure()
    of_bound = bound.seconds(result.parts) / arguments.seconds
    of_peak = bound.share_of_peak(result.parts, arguments.seconds)
    print(
        f"{result.load}: {result.pictures_per_s:.2f} pictures/s, {of_bound:.2f} of the bound, "
        f"{of_peak:.2f} of the peak, p50 {result.quantile(0.5):.2f} s, p95 {result.quantile(0.95):.2f} s"
    )


if __name__ == "__main__":
    main()
