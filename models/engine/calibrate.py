"""Calibration: what a device does best, measured once, and the batches in which a row keeps its bits.

A network's kernels are chosen by the shape of its input, so a row's result may differ in its last bits from one batch
size to another. Sizes fall into classes that agree bitwise; every batch is padded to a size of one class, and then a
picture does not depend on what shares the batch (docs/decisions/0003).
"""

from __future__ import annotations

import functools
import gc
import hashlib
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import diffusers
import torch
from filelock import FileLock
from torch.utils.flop_counter import FlopCounterMode

from models.classifiers import load_steering
from models.cpu_layers import FEWEST_ROWS
from models.denoisers import load_denoiser
from models.engine.calibration import DEPENDS, BatchSize, Calibration, NetworkCalibration
from models.engine.lanes import CORES, Lanes, Layout, let_go, possible_layouts
from models.engine.probes import Network, Probes, only
from models.loading import FLOAT32, InvalidPack, Pack, Precision

COMPILED_SIZES = (2, 4, 8, 16, 32, 48)  # compiling takes about half a minute a size on a CPU
REFERENCE_SIZE = 16
SWITCH_GAIN = 1.15  # number formats nearer than that are equally quick: noise must not decide what bytes pictures have
LAYOUT_GAIN = 1.05  # a layout changes the bits of few networks
COMPILE_GAIN = 1.05  # compiled kernels are asked for, so a small gain is enough
HOPELESS = 8.0  # what takes so many times the quickest's time is not tried again; half as many after two tries, ...
BATCH_OVERHEAD_ROWS = 4
PATIENCE_S = 3600.0  # with others that measure
REPEATS = 5
_FORMAT = 14  # of the cached file


def device_name(device: torch.device) -> str:
    """The hardware, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {CORES} threads"


def calibration_key(pack: Pack, device: torch.device, *, compiling: bool = False) -> str:
    """What a calibration depends on: the pack, the hardware, and the libraries that choose the kernels."""
    libraries = (torch.__version__, diffusers.__version__)
    parts = (pack.digest(), device_name(device), *libraries, str(compiling), str(_FORMAT))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/cynosure/calibration`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cynosure" / "calibration"


def cached_calibration(
    pack: Pack, device: torch.device, *, compiling: bool = False, again: bool = False
) -> Calibration:
    """The calibration of this pack, device and these libraries: from the cache, or measured now and cached.

    Workers that start together measure one after the other: side by side they would measure each other.

    Where `compiling`, `torch.compile` is tried too; that takes minutes, and a C++ compiler on a CPU.

    Raises:
        filelock.Timeout: others that measure have not come to an end.
    """
    path = cache_folder() / f"{calibration_key(pack, device, compiling=compiling)}.json"

    def cached() -> Calibration | None:
        return Calibration.from_json(path.read_text()) if path.is_file() and not again else None

    if (known := cached()) is not None:
        return known
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / "measuring.lock", timeout=PATIENCE_S):
        if (known := cached()) is not None:
            return known
        found = calibrate(pack, device, compiling=compiling)
        _free_memory()
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(found.to_json())
        os.replace(unfinished, path)
        return found


def calibrate(pack: Pack, device: torch.device, *, compiling: bool = False) -> Calibration:
    """Measure the pack's networks on `device`; takes about a minute, on old CPUs some, and more where `compiling`.

    Raises:
        InvalidPack: the device has no memory for it, or its numbers overflow.
    """
    hold = functools.cache if device.type == "cpu" else _one_at_a_time
    loaded, steering_at = hold(partial(load_denoiser, pack, device)), hold(partial(load_steering, pack, device))

    def denoiser_at(precision: Precision) -> Network:
        return only(loaded(precision).forward)

    def classifier_at(precision: Precision) -> Network:
        steering = steering_at(precision)
        assert steering is not None
        return steering.gradient

    probes = Probes.of(_first_that_fits(loaded, device), pack, device)
    steering = _first_that_fits(steering_at, device)
    asked = steering.examples() if steering is not None else None
    del steering  # no more than one is held on a GPU
    with Lanes(possible_layouts(device)[0]) as lanes:  # in a number format that is quick, lanes gain most
        precision = _preferred(_tried_precisions(denoiser_at, probes, lanes, _precisions(device)))
    layouts = _tried_layouts(denoiser_at(precision), probes)
    bits_in = partial(_bits_in, denoiser_at(precision), probes)
    with Lanes(_least_padded(layouts, bits_in, gain=LAYOUT_GAIN)) as lanes:
        return Calibration(
            key=calibration_key(pack, device, compiling=compiling),
            device=device_name(device),
            layout=lanes.layout,
            layouts={str(layout): row_ms for layout, row_ms in layouts.items()},
            denoiser=_calibrate_network(denoiser_at, probes, lanes, compiling=compiling),
            classifier=_calibrate_network(classifier_at, probes.telling(asked), lanes, by_gradient=True)
            if asked is not None
            else None,
        )


_Way = TypeVar("_Way")
_Loaded = TypeVar("_Loaded")


def _precisions(device: torch.device, *, by_gradient: bool = False) -> tuple[Precision, ...]:
    """In order of preference."""
    bfloat16 = Precision(dtype="bfloat16")
    if device.type == "cpu":  # where oneDNN's convolutions choose their own memory layout
        return FLOAT32, bfloat16
    plain = [FLOAT32, Precision(tf32=True), bfloat16]
    if not by_gradient:  # small gradients are zero in float16
        plain.append(Precision(dtype="float16"))
    return (*plain, *(replace(precision, channels_last=True) for precision in plain))


def _one_at_a_time(load: Callable[[Precision], _Loaded]) -> Callable[[Precision], _Loaded]:
    """`load`, with what it loaded last kept and nothing else: a GPU may have no memory for two."""
    held: dict[Precision, _Loaded] = {}

    def loaded(precision: Precision) -> _Loaded:
        if precision not in held:
            held.clear()
            _free_memory()
            held[precision] = load(precision)
        return held[precision]

    return loaded


def _free_memory() -> None:
    """Give the device what nothing needs any more; networks that hold themselves, as by a cache of a method, too."""
    gc.collect()
    torch.cuda.empty_cache()


def _first_that_fits(load: Callable[[Precision], _Loaded], device: torch.device) -> _Loaded:
    """What is loaded in the first number format that the device has memory for."""
    *others, last = _precisions(device)
    for precision in others:
        try:
            return load(precision)
        except torch.OutOfMemoryError as error:
            let_go(error)
    return load(last)


def _tried_layouts(network: Network, probes: Probes) -> dict[Layout, float]:
    """Fewest lanes first: with more threads each, a lone request is done sooner."""
    with ExitStack() as stack:
        ways = {
            layout: partial(_once_ms, network, probes, stack.enter_context(Lanes(layout)), REFERENCE_SIZE)
            for layout in possible_layouts(probes.device)
        }
        return in_turns(ways)


def _bits_in(network: Network, probes: Probes, layout: Layout) -> dict[int, str]:
    with Lanes(layout) as lanes:
        return {size: _bits(network, probes, lanes, size) for size in probes.sizes if size <= REFERENCE_SIZE}


def _tried_precisions(
    network_at: Callable[[Precision], Network], probes: Probes, lanes: Lanes, precisions: Iterable[Precision]
) -> dict[Precision, float]:
    """Milliseconds a row, by precision; left out are those without memory, and those whose numbers overflow.

    Raises:
        InvalidPack: no precision is left.
    """

    def once_ms(precision: Precision) -> float:
        try:
            return _once_ms(network_at(precision), probes, lanes, REFERENCE_SIZE)
        except torch.OutOfMemoryError as error:
            let_go(error)
            return math.inf

    ways = {precision: partial(once_ms, precision) for precision in precisions}
    if probes.device.type == "cpu":
        tried = in_turns(ways)
    else:  # not in turns: networks are held one at a time
        tried = {precision: in_turns({precision: measure})[precision] for precision, measure in ways.items()}
    usable = {precision: row_ms for precision, row_ms in tried.items() if row_ms < math.inf}
    if not usable:
        raise InvalidPack(
            f"in no number format has {probes.device} memory for {REFERENCE_SIZE} rows of it and gives finite numbers"
        )
    return usable


def in_turns(ways: Mapping[_Way, Callable[[], float]]) -> dict[_Way, float]:
    """The best of some tries of each, one after the other: what else runs here then slows all of them, not one."""
    best = dict.fromkeys(ways, math.inf)
    for number in range(1 + REPEATS):
        for way, measure in ways.items():
            if number == 0 or best[way] < HOPELESS / number * min(best.values()):
                best[way] = min(best[way], measure())
    return best


def _preferred(tried: dict[_Way, float]) -> _Way:
    """The quickest, where each must beat those before it by `SWITCH_GAIN`."""
    chosen, *others = tried
    for way in others:
        if tried[way] * SWITCH_GAIN < tried[chosen]:
            chosen = way
    return chosen


def _calibrate_network(
    network_at: Callable[[Precision], Network],
    probes: Probes,
    lanes: Lanes,
    *,
    compiling: bool = False,
    by_gradient: bool = False,
) -> NetworkCalibration:
    @functools.cache
    def bits_of(precision: Precision) -> dict[int, str]:
        sizes = COMPILED_SIZES if precision.compiled else probes.sizes
        found: dict[int, str] = {}
        for size in sizes:
            try:
                found[size] = _bits(network_at(precision), probes, lanes, size)
            except torch.OutOfMemoryError as error:
                let_go(error)
                break  # there is none for larger ones either
        return found

    tried = _tried_precisions(network_at, probes, lanes, _precisions(probes.device, by_gradient=by_gradient))
    chosen = _least_padded(tried, bits_of)
    if compiling:
        compiled = replace(chosen, compiled=True)
        with suppress(InvalidPack):
            tried |= _tried_precisions(network_at, probes, lanes, [compiled])
        if tried.get(compiled, math.inf) * COMPILE_GAIN < tried[chosen]:
            chosen = compiled
    bits = bits_of(chosen)
    timed = _timed(network_at(chosen), probes, lanes, bits)
    measured = tuple(BatchSize(rows=size, row_ms=timed[size], bits=digest) for size, digest in bits.items())
    agreeing = _best_class(bits)
    return NetworkCalibration(
        precision=chosen,
        tried={str(precision): row_ms for precision, row_ms in tried.items()},
        measured=measured,
        sizes=agreeing or tuple(bits),
        is_bitwise=bool(agreeing),
        row_flop=_row_flop(network_at(replace(chosen, compiled=False)), probes),
    )


def _least_padded(
    tried: Mapping[_Way, float], bits_of: Callable[[_Way], Mapping[int, str]], *, gain: float = SWITCH_GAIN
) -> _Way:
    """Of the ways about as quick as the quickest, the first whose class pads least."""
    quickest = min(tried.values())
    close = [way for way, row_ms in tried.items() if row_ms < gain * quickest]
    if len(close) == 1:
        return close[0]

    def padding(way: _Way) -> float:
        bits = bits_of(way)
        agreeing = _best_class(bits)
        return _padding_cost(list(bits), agreeing) if agreeing else math.inf

    return min(close, key=padding)


def _timed(network: Network, probes: Probes, lanes: Lanes, sizes: Iterable[int]) -> dict[int, float]:
    """Milliseconds a row by size, every lane running such a batch."""
    return in_turns({size: partial(_once_ms, network, probes, lanes, size) for size in sizes})


def _once_ms(network: Network, probes: Probes, lanes: Lanes, size: int) -> float:
    batch = probes.batch(size)
    calls = [lambda: network(*batch)[0].isfinite().all().item()] * lanes.count  # .item() waits for the device
    if probes.device.type != "cpu":
        lanes.run(calls)  # kernels are loaded and chosen at the first
    started = time.perf_counter()
    are_finite = lanes.run(calls)
    row_ms = (time.perf_counter() - started) / (size * lanes.count) * 1000
    return row_ms if all(are_finite) else math.inf


def _row_flop(network: Network, probes: Probes) -> int:
    batch = probes.batch(FEWEST_ROWS)  # fewer would be padded
    return flop_of(lambda: network(*batch)) // FEWEST_ROWS


def flop_of(call: Callable[[], object]) -> int:
    """Floating-point operations of a call, by torch's own count."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def _bits(network: Network, probes: Probes, lanes: Lanes, size: int) -> str:
    """A digest of the probes' results, the same wherever they stand in the batch; or `DEPENDS` if not."""
    arranged = list(probes.arranged(size))
    outputs = lanes.run([partial(network, *batch) for _, batch in arranged])
    seen: dict[int, set[bytes]] = {number: set() for number in range(len(probes.rows))}
    for (numbers, _), (output, *_) in zip(arranged, outputs, strict=True):
        for position, number in numbers.items():
            seen[number].add(output[position].cpu().numpy().tobytes())
    if any(len(results) > 1 for results in seen.values()):
        return DEPENDS
    return hashlib.sha256(b"".join(result for results in seen.values() for result in results)).hexdigest()[:12]


def _best_class(bits: Mapping[int, str]) -> tuple[int, ...]:
    """Sizes of the class that costs least over all sizes, or none where every size depends on the neighbours."""
    classes: dict[str, list[int]] = {}
    for size, digest in bits.items():
        if digest != DEPENDS:
            classes.setdefault(digest, []).append(size)
    best: Sequence[int] = min(classes.values(), key=partial(_padding_cost, list(bits)), default=[])
    return tuple(best)


def _padding_cost(wanted: Sequence[int], sizes: Sequence[int]) -> float:
    """What batches of all `wanted` sizes cost when padded to `sizes`, as a multiple of what they would unpadded.

    By a rule of thumb, a batch costs as its rows and `BATCH_OVERHEAD_ROWS` more: timings, which have noise, must not
    choose bytes.
    """

    def cost(rows: int) -> int:
        return rows + BATCH_OVERHEAD_ROWS

    total = 0.0
    for rows in wanted:
        full, rest = divmod(rows, sizes[-1])
        padded = [sizes[-1]] * full + [next(size for size in sizes if size >= rest)] * (rest > 0)
        total += sum(map(cost, padded)) / cost(rows)
    return total / len(wanted)
