"""Pictures per second of the engine, against diffusers' loop behind a lock and in static batches."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks.bound import product_flop_per_s
from benchmarks.engine import specs_of
from benchmarks.peers.drawing import PlainPipeline
from benchmarks.stream import SAMPLERS, Asked, plain
from models.calibration.measure import in_turns
from models.engine import Engine
from models.pack import Pack

LOCKED = 2  # pictures that are drawn behind a lock, one after the other: more take longer, and have the same speed


def asked_for(pack: Pack, count: int, *, steps: int, is_mixed: bool) -> list[Asked]:
    """Requests of one picture each: alike, or of all samplers in turn."""
    alike = [plain(pack, number, steps=steps) for number in range(count)]
    if not is_mixed:
        return alike
    return [replace(asked, sampler=SAMPLERS[number % len(SAMPLERS)]) for number, asked in enumerate(alike)]


def _drawn(engine: Engine, pack: Pack, asked: Sequence[Asked]) -> None:
    engine.generate([spec for one in asked for spec in specs_of(one, pack)])


def _timed(draw: Callable[[], object], device: torch.device) -> Callable[[], float]:
    def seconds() -> float:
        started = time.perf_counter()
        draw()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    return seconds


def race(pack: Pack, device: torch.device, counts: Sequence[int], *, steps: int, compiled: bool) -> None:
    """Print a line for each number of samples that are drawn at once."""
    os.environ |= {"CYNOSURE_BENCH_PACK": str(pack.folder), "CYNOSURE_BENCH_DEVICE": str(device)}
    peer = PlainPipeline()
    with Engine([str(pack.folder)], device=str(device), compiled=compiled) as engine:
        engine.wait_until_measured()
        loaded = engine.packs[pack.name]
        network = loaded.calibration.denoiser
        peak = product_flop_per_s(loaded.runner.lanes, device, network.precision)
        how = f"{network.precision}{', compiled' if compiled else ''}"
        sys.stdout.write(f"{pack.name}, {how}, batches of up to {network.sizes[-1]} rows, {steps} steps\n")
        for count in counts:
            alike, mixed = (asked_for(pack, count, steps=steps, is_mixed=is_mixed) for is_mixed in (False, True))
            ways = {
                "a lock": (alike[:LOCKED], lambda asked: [peer.draw([one]) for one in asked]),
                "a static batch": (alike, peer.draw),
                "Cynosure": (alike, partial(_drawn, engine, pack)),
                "Cynosure, mixed": (mixed, partial(_drawn, engine, pack)),
            }
            taken = in_turns({name: _timed(partial(draw, asked), device) for name, (asked, draw) in ways.items()})
            rate = {name: len(asked) / taken[name] for name, (asked, _) in ways.items()}
            batch = min(count, network.sizes[-1])
            alone_s = steps * network.row_seconds(batch) / batch  # of a picture's evaluations
            sys.stdout.write(
                f"  {count:>3} samples, pictures/s: {', '.join(f'{name} {each:.2f}' for name, each in rate.items())}; "
                f"mixed is {rate['Cynosure, mixed'] / rate['a static batch']:.2f} of the static batch, "
                f"{steps * network.row_flop * rate['Cynosure'] / peak:.2f} of matmul peak, "
                f"{max(0.0, 1 - alone_s * rate['Cynosure']):.0%} beside the network\n"
            )
