"""`python -m benchmarks.gpu`: check a GPU, then time packs of published sizes with random weights on it.

`--device cpu --tiny` tries the same program out on a CPU, with packs of a few million weights; its speeds say nothing.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from benchmarks.gpu.correctness import checks, lost, told
from benchmarks.gpu.speed import race
from benchmarks.packs import benchmark_pack

PACKS, TINY = ("adm-256", "sd-1.5", "dit-xl"), ("adm-tiny", "sd-tiny", "dit-tiny")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda:0"))
    parser.add_argument("--tiny", action="store_true", help="small packs and few samples")
    parser.add_argument("--samples", type=int, nargs="+", help="numbers of samples that are drawn at once")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--packs", nargs="+", help=f"by default {', '.join(PACKS)}")
    arguments = parser.parse_args()
    started = time.perf_counter()
    if arguments.device.type == "cpu":
        torch.set_num_threads(1)  # diffusers' loop would wait for its second thread on a busy machine
    checked = [benchmark_pack(name) for name in (TINY if arguments.tiny else ("fashion", "emoji"))]
    holds = [told(check) for pack in checked for check in checks(pack, arguments.device)]
    for name in arguments.packs or (TINY if arguments.tiny else PACKS):
        for compiled in (False,) if arguments.tiny else (False, True):
            race(
                benchmark_pack(name),
                arguments.device,
                arguments.samples or ((1, 4) if arguments.tiny else (1, 4, 16, 64)),
                steps=arguments.steps,
                compiled=compiled,
            )
    if arguments.device.type == "cuda":
        holds.append(told(lost(checked[0], arguments.device)))
    sys.stdout.write(f"{time.perf_counter() - started:.0f} s\n")
    sys.exit(0 if all(holds) else "the device draws something else")


if __name__ == "__main__":
    main()
