"""Whether a device draws what it should, and lives through want of memory; a lost device ends the engine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from itertools import islice

import numpy as np
import torch

from benchmarks.engine import specs_of
from benchmarks.stream import mixed_stream
from models.engine import Engine, EngineDied, OutOfMemory
from models.engine.sample import Image
from models.pack import Pack
from models.spec import SampleSpec

SAMPLES = 24
MOST_LEVELS = 2  # of 255, between two devices that both compute in float32
Check = tuple[str, bool, str]
"""What was checked, whether it holds, and what was seen."""


def mixed(pack: Pack, count: int) -> list[SampleSpec]:
    """The first samples of the mixed stream, none of more than 20 steps."""
    few = (asked for asked in mixed_stream(pack, seed=7) if asked.steps <= 20)
    return list(islice((spec for asked in few for spec in specs_of(asked, pack)), count))


def checks(pack: Pack, device: torch.device) -> Iterator[Check]:
    """Check a pack on a device, as far as the device can be checked."""
    specs = mixed(pack, SAMPLES)
    yield _like_the_cpu(pack, device, specs)
    with Engine([str(pack.folder)], device=str(device)) as engine:
        engine.wait_until_measured()
        sizes = engine.packs[pack.name].calibration.denoiser.sizes
        crowd = engine.generate(specs)
        alone = [engine.generate([spec])[0] for spec in specs]
        same = _equal(crowd, alone)
        yield f"{pack.name}: bytes alone and in a crowd", same, f"{len(specs)} samples, batches of {sizes} rows"
        if device.type == "cuda":
            yield _without_memory(engine, pack, device, specs, crowd)


def _equal(some: Sequence[Image], others: Sequence[Image]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(some, others, strict=True))


def _like_the_cpu(pack: Pack, device: torch.device, specs: Sequence[SampleSpec]) -> Check:
    def drawn(device: str) -> list[Image]:
        with Engine([str(pack.folder)], device=device, precision="float32", measure_at_once=False) as engine:
            return engine.generate(specs)

    pairs = zip(drawn(str(device)), drawn("cpu"), strict=True)
    levels = max(int(np.abs(one.astype(int) - other).max()) for one, other in pairs)
    return f"{pack.name}: pictures as on a CPU, in float32", levels <= MOST_LEVELS, f"{levels} of 255 levels apart"


def _without_memory(
    engine: Engine, pack: Pack, device: torch.device, specs: Sequence[SampleSpec], expected: Sequence[Image]
) -> Check:
    """Take nearly all memory from an engine that draws, give it back, and see whether it goes on as before."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction((total - free + 2**20) / total, device)
    handles = engine.submit_all(specs)
    wait([handle.future for handle in handles])
    failures = [handle.future.exception() for handle in handles]
    torch.cuda.set_per_process_memory_fraction(1.0, device)
    starved = sum(isinstance(failure, OutOfMemory) for failure in failures)
    others = [failure for failure in failures if failure is not None and not isinstance(failure, OutOfMemory)]
    same = _equal(engine.generate(specs), expected)
    seen = (
        f"{starved} of {len(specs)} samples found no memory{f', {others[0]}' if others else ''}; the same bytes after"
    )
    return f"{pack.name}: want of memory", not others and same, seen


def lost(pack: Pack, device: torch.device) -> Check:
    """Lose the device while samples are drawn: this process can't use it any more afterwards."""
    specs = mixed(pack, SAMPLES)
    with Engine([str(pack.folder)], device=str(device)) as engine:
        handles = engine.submit_all(specs)
        torch._assert_async(torch.zeros(1, dtype=torch.bool, device=device))
        errors = [_error_of(handle.result) for handle in handles]
    ended = sum(isinstance(error, EngineDied) for error in errors)
    others = [error for error in errors if error is not None and not isinstance(error, EngineDied)]
    return (
        f"{pack.name}: a lost device",
        ended > 0 and not others,
        f"{ended} of {len(specs)} samples end with EngineDied",
    )


def _error_of(call: Callable[[float], object]) -> BaseException | None:
    try:
        call(60.0)
    except Exception as error:
        return error
    return None


def told(check: Check) -> bool:
    """Print a check; whether it holds."""
    what, holds, seen = check
    sys.stdout.write(f"{'ok  ' if holds else 'FAIL'}  {what}: {seen}\n")
    return holds
