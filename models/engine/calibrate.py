"""Calibration: what a device does best, measured once, and the batches in which a row keeps its bits.

A network's kernels are chosen by the shape of its input, so a row's result may differ in its last bits from one batch
size to another. Sizes fall into classes that agree bitwise; every batch is padded to a size of one class, and then a
picture does not depend on what shares the batch (docs/decisions/0003).
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.classifiers import Steering, load_steering
from models.cpu_layers import FEWEST_ROWS
from models.denoisers import Conditioning, Denoiser, load_denoiser
from models.engine.lanes import CORES, Lanes, Layout, possible_layouts
from models.loading import FLOAT32, Pack, Precision
from models.spec import Pixels, SampleSpec

CPU_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
CUDA_SIZES = (*CPU_SIZES, 64, 96, 128, 192, 256)
COMPILED_SIZES = (2, 4, 8, 16, 32, 48)  # compiling takes about half a minute a size on a CPU
REFERENCE_SIZE = 16
KNEE = 1.05  # the row budget is the smallest batch within 5 % of the best time a row: a shorter tick for everyone
SWITCH_GAIN = (
    1.15  # number formats nearer than that count as equally quick: noise must not decide what bytes a picture has
)
LAYOUT_GAIN = 1.05  # a layout changes the bits of few networks
COMPILE_GAIN = 1.05  # compiled kernels are asked for, so a small gain is enough
HOPELESS = 8.0  # what takes so many times the quickest's time is not tried again; half as many after two tries, ...
BATCH_OVERHEAD_ROWS = 4
PATIENCE_S = 3600.0  # with others that measure
REPEATS = 5
DEPENDS = "on the neighbours"
_FORMAT = 13  # of the cached file

Network = Callable[[Tensor, Tensor, Conditioning], tuple[Tensor, ...]]
"""(x (B,C,H,W), timesteps (B,), conditioning) → ((B,C,H,W), …), every one with the batch's axis first."""


@dataclass(frozen=True, kw_only=True)
class BatchSize:
    """One measured batch size.

    Attributes:
        rows: the size.
        row_ms: milliseconds of the device's time a row takes in it: every lane runs such a batch.
        bits: sizes with the same text give the same bits, but for `DEPENDS`.
    """

    rows: int
    row_ms: float
    bits: str


@dataclass(frozen=True, kw_only=True)
class NetworkCalibration:
    """What was found for one network.

    Attributes:
        precision: the number format it runs in.
        tried: milliseconds a row in a batch of 16, by precision.
        measured: every size that was tried.
        sizes: the sizes of the best class, ascending: batches are padded to one of them.
        is_bitwise: whether `sizes` is a class; where the device has none it is all sizes.
        row_flop: floating-point operations of a row, by torch's own count; 0 where it wasn't counted.
    """

    precision: Precision
    tried: dict[str, float]
    measured: tuple[BatchSize, ...]
    sizes: tuple[int, ...]
    is_bitwise: bool
    row_flop: int = 0

    @property
    def knee(self) -> int:
        """Rows of a batch at the knee: more of them cost everyone time and bring next to nothing."""
        usable = [size for size in self.measured if size.rows in self.sizes]
        best = min(size.row_ms for size in usable)
        return min(size.rows for size in usable if size.row_ms <= KNEE * best)

    def padded(self, rows: int) -> int:
        """The size, of those in use, that a batch of `rows` is done soonest in; not always the smallest that holds it.

        Kernels for few rows can be slower altogether than those for more: 6 rows in bfloat16 took longer than 8.
        """
        return self._holding(rows).rows

    def row_seconds(self, rows: int) -> float:
        """Estimated time of a batch of `rows`, padding included."""
        holding = self._holding(rows)
        return max(rows, holding.rows) * holding.row_ms / 1000

    def _holding(self, rows: int) -> BatchSize:
        usable = [size for size in self.measured if size.rows in self.sizes]
        enough = [size for size in usable if size.rows >= rows] or usable[-1:]
        return min(enough, key=lambda size: size.rows * size.row_ms)

    def batches(self, rows: int, *, lanes: int, limit: int) -> list[int]:
        """How many of `rows` go into each batch, at most `limit`, so that `lanes` are done with them soonest."""
        largest = max([size for size in self.sizes if size <= limit], default=self.sizes[0])
        fewest = math.ceil(rows / largest)

        def seconds(count: int) -> float:
            return math.ceil(count / lanes) * self.row_seconds(math.ceil(rows / count))

        count = min(range(fewest, min(fewest + lanes, rows + 1)), key=seconds)
        return [rows // count + (number < rows % count) for number in range(count)]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was found for a pack on a device.

    Attributes:
        key: what it depends on, as `calibration_key` has it.
        device: the hardware, in words.
        layout: how the cores are dealt out.
        layouts: milliseconds a denoiser row in batches of 16, by layout.
    """

    key: str
    device: str
    layout: Layout
    layouts: dict[str, float]
    denoiser: NetworkCalibration
    classifier: NetworkCalibration | None

    @property
    def is_reproducible(self) -> bool:
        return self.denoiser.is_bitwise and (self.classifier is None or self.classifier.is_bitwise)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        fields: dict[str, Any] = json.loads(text)

        def network(found: dict[str, Any] | None) -> NetworkCalibration | None:
            if found is None:
                return None
            measured = tuple(BatchSize(**size) for size in found["measured"])
            precision = Precision(**found["precision"])
            return NetworkCalibration(
                **found | {"precision": precision, "measured": measured, "sizes": tuple(found["sizes"])}
            )

        denoiser = network(fields["denoiser"])
        assert denoiser is not None
        classifier, layout = network(fields["classifier"]), Layout(**fields["layout"])
        return cls(**fields | {"layout": layout, "denoiser": denoiser, "classifier": classifier})


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
        partial = path.with_suffix(".partial")
        partial.write_text(found.to_json())
        os.replace(partial, path)
        return found


def calibrate(pack: Pack, device: torch.device, *, compiling: bool = False) -> Calibration:
    """Measure the pack's networks on `device`; takes about a minute, on old CPUs some, and more where `compiling`."""

    @functools.cache
    def loaded(precision: Precision) -> Denoiser:
        return load_denoiser(pack, device, precision)

    def denoiser_at(precision: Precision) -> Network:
        return only(loaded(precision).forward)

    @functools.cache
    def steering_at(precision: Precision) -> Steering | None:
        return load_steering(pack, device, precision)

    def classifier_at(precision: Precision) -> Network:
        steering = steering_at(precision)
        assert steering is not None
        return steering.gradient

    denoiser, steering = _first_that_fits(loaded, device), steering_at(FLOAT32)
    probes = _Probes(denoiser.latent_shape, pack.num_train_timesteps, device, told_by(denoiser, pack))
    with Lanes(possible_layouts(device)[0]) as lanes:  # in a number format that is quick, lanes gain most
        precision = _preferred(_tried_precisions(denoiser_at, probes, lanes))
    layouts = _tried_layouts(denoiser_at(precision), probes)
    bits_in = partial(_bits_in, denoiser_at(precision), probes)
    with Lanes(_least_padded(layouts, bits_in, gain=LAYOUT_GAIN)) as lanes:
        return Calibration(
            key=calibration_key(pack, device, compiling=compiling),
            device=device_name(device),
            layout=lanes.layout,
            layouts={str(layout): row_ms for layout, row_ms in layouts.items()},
            denoiser=_calibrate_network(denoiser_at, probes, lanes, compiling=compiling),
            classifier=_calibrate_network(classifier_at, probes.telling(steering.examples()), lanes)
            if steering is not None
            else None,
        )


def only(network: Callable[[Tensor, Tensor, Conditioning], Tensor]) -> Network:
    """A network of one output as one of many, each in memory of its own: CUDA graphs write theirs to one place."""
    return lambda x, timesteps, conditioning: (network(x, timesteps, conditioning).clone(),)


def told_by(denoiser: Denoiser, pack: Pack) -> Sequence[Conditioning]:
    """Some conditionings of denoiser rows that differ, to measure with."""
    size = denoiser.picture_size
    start = Pixels.of(np.zeros((*size, 3), np.uint8))
    prompts = ("a cat", "two red apples on a table", "")
    labels = [number % len(pack.labels) if pack.labels else None for number in range(len(prompts))]
    return [
        denoiser.conditioning(SampleSpec(pack=pack.name, label=label, prompt=prompt, init_image=start))[0]
        for label, prompt in zip(labels, prompts, strict=True)
    ]


def stacked(rows: Sequence[Conditioning], device: torch.device) -> Conditioning:
    """The conditioning of a batch."""
    return {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}


Batch = tuple[Tensor, Tensor, Conditioning]
_Way = TypeVar("_Way")


def fixed_calibration(pack: Pack | None = None, device: torch.device | None = None) -> Calibration:
    """Nothing measured: float32 in batches of 4 rows. For networks that take longer to measure than to draw with."""
    network = NetworkCalibration(
        precision=FLOAT32,
        tried={},
        measured=(BatchSize(rows=4, row_ms=1.0, bits=""),),
        sizes=(4,),
        is_bitwise=True,
    )
    layout = Layout(lanes=1, threads=1)
    return Calibration(key="", device="", layout=layout, layouts={}, denoiser=network, classifier=network)


class _Probes:
    """Inputs of any size: fixed rows to look at, among random neighbours."""

    def __init__(
        self, shape: tuple[int, int, int], num_timesteps: int, device: torch.device, told: Sequence[Conditioning]
    ) -> None:
        self.device = device
        self.sizes = CUDA_SIZES if device.type == "cuda" else CPU_SIZES
        self._generator = torch.Generator().manual_seed(0)
        self._shape = shape
        self._told = told
        self._num_timesteps = num_timesteps
        self.rows = [
            (torch.randn(self._shape, generator=self._generator), round(share * (num_timesteps - 1)), index)
            for index, share in enumerate((0.02, 0.5, 0.98))
        ]

    def telling(self, told: Sequence[Conditioning]) -> _Probes:
        """The same with other conditionings, for another network."""
        return _Probes(self._shape, self._num_timesteps, self.device, told)

    def batch(self, size: int) -> Batch:
        x, timesteps, told = self._batch(size)
        return x.to(self.device), timesteps.to(self.device), stacked([self._told[one] for one in told], self.device)

    def arranged(self, size: int) -> Iterator[tuple[dict[int, int], Batch]]:
        """(the row's number by position, that batch), until every row has stood at every position.

        Where a batch has none of them stands a random neighbour.
        """
        shifts = range(len(self.rows) + 1)
        for shift in (*shifts, *shifts) if size == 1 else shifts:  # no row is looked at once only
            x, timesteps, told = self._batch(size)
            numbers = {position: (position + shift) % (len(self.rows) + 1) for position in range(size)}
            numbers = {position: number for position, number in numbers.items() if number < len(self.rows)}
            for position, number in numbers.items():
                row, timestep, index = self.rows[number]
                x[position], timesteps[position], told[position] = row, timestep, index % len(self._told)
            conditioning = stacked([self._told[one] for one in told], self.device)
            yield numbers, (x.to(self.device), timesteps.to(self.device), conditioning)

    def _batch(self, size: int) -> tuple[Tensor, Tensor, list[int]]:
        x = torch.randn(size, *self._shape, generator=self._generator)
        timesteps = torch.randint(self._num_timesteps, (size,), generator=self._generator).float()
        return x, timesteps, torch.randint(len(self._told), (size,), generator=self._generator).tolist()


def _precisions(device: torch.device) -> tuple[Precision, ...]:
    """In order of preference."""
    bfloat16 = Precision(dtype="bfloat16")
    if device.type == "cpu":  # where oneDNN's convolutions choose their own memory layout
        return FLOAT32, bfloat16
    plain = (FLOAT32, Precision(tf32=True), bfloat16, Precision(dtype="float16"))
    return (*plain, *(replace(precision, channels_last=True) for precision in plain))


def _first_that_fits(load: Callable[[Precision], Denoiser], device: torch.device) -> Denoiser:
    """The network in the first number format that the device has memory for."""
    *others, last = _precisions(device)
    for precision in others:
        with suppress(torch.OutOfMemoryError):
            return load(precision)
    return load(last)


def _tried_layouts(network: Network, probes: _Probes) -> dict[Layout, float]:
    """Fewest lanes first: with more threads each, a lone request is done sooner."""
    with ExitStack() as stack:
        ways = {
            layout: partial(_once_ms, network, probes, stack.enter_context(Lanes(layout)), REFERENCE_SIZE)
            for layout in possible_layouts(probes.device)
        }
        return in_turns(ways)


def _bits_in(network: Network, probes: _Probes, layout: Layout) -> dict[int, str]:
    with Lanes(layout) as lanes:
        return {size: _bits(network, probes, lanes, size) for size in probes.sizes if size <= REFERENCE_SIZE}


def _tried_precisions(
    network_at: Callable[[Precision], Network], probes: _Probes, lanes: Lanes
) -> dict[Precision, float]:
    """Milliseconds a row; number formats for which the device has no memory, beside those before, are left out.

    Raises:
        torch.OutOfMemoryError: it has none for any.
    """

    def once_ms(precision: Precision) -> float:
        try:
            return _once_ms(network_at(precision), probes, lanes, REFERENCE_SIZE)
        except torch.OutOfMemoryError:
            return math.inf

    tried = in_turns({precision: partial(once_ms, precision) for precision in _precisions(probes.device)})
    fitting = {precision: row_ms for precision, row_ms in tried.items() if row_ms < math.inf}
    if not fitting:
        raise torch.OutOfMemoryError(f"{probes.device} has no memory for {REFERENCE_SIZE} rows in any number format")
    return fitting


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
    network_at: Callable[[Precision], Network], probes: _Probes, lanes: Lanes, *, compiling: bool = False
) -> NetworkCalibration:
    @functools.cache
    def bits_of(precision: Precision) -> dict[int, str]:
        sizes = COMPILED_SIZES if precision.compiled else probes.sizes
        found: dict[int, str] = {}
        with suppress(torch.OutOfMemoryError):  # then there is none for the larger ones either
            for size in sizes:
                found[size] = _bits(network_at(precision), probes, lanes, size)
        return found

    tried = _tried_precisions(network_at, probes, lanes)
    chosen = _least_padded(tried, bits_of)
    if compiling:
        compiled = replace(chosen, compiled=True)
        tried[compiled] = _timed(network_at(compiled), probes, lanes, [REFERENCE_SIZE])[REFERENCE_SIZE]
        if tried[compiled] * COMPILE_GAIN < tried[chosen]:
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


def _timed(network: Network, probes: _Probes, lanes: Lanes, sizes: Iterable[int]) -> dict[int, float]:
    """Milliseconds a row by size, every lane running such a batch."""
    return in_turns({size: partial(_once_ms, network, probes, lanes, size) for size in sizes})


def _once_ms(network: Network, probes: _Probes, lanes: Lanes, size: int) -> float:
    batch = probes.batch(size)
    started = time.perf_counter()
    lanes.run([lambda: network(*batch)[0].cpu()] * lanes.layout.lanes)  # .cpu() waits for the device
    return (time.perf_counter() - started) / (size * lanes.layout.lanes) * 1000


def _row_flop(network: Network, probes: _Probes) -> int:
    with FlopCounterMode(display=False) as counter:
        network(*probes.batch(FEWEST_ROWS))  # fewer would be padded
    return int(counter.get_total_flops()) // FEWEST_ROWS


def _bits(network: Network, probes: _Probes, lanes: Lanes, size: int) -> str:
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
