"""`python -m benchmarks.anatomy`: where a picture's time goes, alone and in a full house, and around the engine."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

from benchmarks.anatomy.engine import WAITING, Anatomy, anatomies
from benchmarks.anatomy.host import host_costs
from benchmarks.anatomy.service import lone_client
from benchmarks.packs import add_pack_options, benchmark_pack


def lines_of(anatomy: Anatomy) -> list[str]:
    """The table of one load."""
    total = anatomy.cores * anatomy.seconds
    parts = anatomy.parts | {WAITING: total - sum(anatomy.parts.values())}
    a_tick = 1e3 / anatomy.ticks
    return [
        f"{anatomy.load}: {anatomy.evaluations} evaluations of samples in {anatomy.ticks} ticks, "
        f"{anatomy.seconds:.2f} s, {anatomy.seconds / anatomy.evaluations * 1e3:.2f} ms each",
        f"  {'part':<20} {'share':>6} {'ms a tick':>10}",
        *(f"  {part:<20} {part_s / total:>6.1%} {part_s * a_tick:>10.3f}" for part, part_s in parts.items()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.anatomy", description=__doc__)
    parser.add_argument("--pictures", type=int, default=40, help="drawn one after the other")
    parser.add_argument("--house", type=int, default=48, help="pictures of the mixed stream that are drawn at once")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/bench"))
    add_pack_options(parser)
    arguments = parser.parse_args()
    print(f"load average before it starts: {os.getloadavg()[0]:.1f}")
    pack = benchmark_pack(arguments.pack)
    engine = anatomies(pack, pictures=arguments.pictures, house=arguments.house)
    for anatomy in engine:
        print("\n".join(lines_of(anatomy)))
    host = host_costs(pack)
    print("a tick besides its networks: ms of a thread's processor time, and torch's operators")
    for name, cost in host.items():
        print(f"  {name:<34} {cost.ms:>8.3f} {cost.operators:>6}")
    service = lone_client(pack, pictures=arguments.pictures)
    print("one client of the service")
    for name, value in service.items():
        print(f"  {name:<34} {value:>8.2f}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = {
        "engine": [asdict(anatomy) for anatomy in engine],
        "host": {name: asdict(cost) for name, cost in host.items()},
        "service": service,
    }
    (arguments.out / "anatomy.json").write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
