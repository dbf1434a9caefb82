"""`python -m benchmarks.engine`: the mixed stream through the engine alone, and its share of the offline bound."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.serving import OfflineBound
from benchmarks.stream import Asked, mixed_stream
from models.engine import Engine
from models.spec import Guidance, SampleSpec

WARM_UP_S = 15.0


def specs_of(asked: Asked) -> list[SampleSpec]:
    """One spec a picture."""
    scale = asked.scale or 0.0
    guidance = {
        "none": Guidance(),
        "classifier_free": Guidance(free_scale=scale),
        "classifier": Guidance(classifier_scale=scale),
    }[asked.mode]
    return [
        SampleSpec(
            pack="fashion",
            label=asked.label,
            guidance=guidance,
            sampler=asked.sampler,
            steps=asked.steps,
            seed=asked.seed,
            image_index=index,
            group=str(asked.seed),
        )
        for index in range(asked.count)
    ]


def load(engine: Engine, stream: Iterator[Asked], *, clients: int, seconds: float) -> list[tuple[Asked, float]]:
    """Requests finished in a window of so many seconds, the load as full before and after; and each one's seconds."""
    start = time.monotonic() + WARM_UP_S
    end = start + seconds
    finished: list[tuple[Asked, float, float]] = []
    taking = threading.Lock()

    def client() -> None:
        while time.monotonic() < end:
            with taking:
                asked = next(stream)
            sent = time.monotonic()
            engine.generate(specs_of(asked))
            finished.append((asked, sent, time.monotonic()))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [(asked, done - sent) for asked, sent, done in finished if start <= done < end]


def main() -> None:
    """Print a line: pictures a second, share of the offline bound, median and 95th percentile."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=main.__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    bound = OfflineBound()
    bound.measure()
    with Engine(["fashion"]) as engine:
        done = load(engine, mixed_stream(seed=32), clients=arguments.clients, seconds=arguments.seconds)
    bound.measure()
    pictures = sum(asked.count for asked, _ in done)
    share = bound.seconds([asked for asked, _ in done]) / arguments.seconds
    p50, p95 = np.quantile([seconds for _, seconds in done], (0.5, 0.95))
    print(
        f"{arguments.clients} clients: {pictures / arguments.seconds:.2f} pictures/s, {share:.2f} of the bound, "
        f"p50 {p50:.2f} s, p95 {p95:.2f} s"
    )


if __name__ == "__main__":
    main()
