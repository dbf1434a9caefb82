"""Calibration finds the batches in which a row keeps its bits, for networks whose answer is known."""

from __future__ import annotations

import gc
import json
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from models.calibration import (
    BatchSize,
    Calibration,
    FileCalibrations,
    NetworkCalibration,
    calibrated,
    load_networks,
    rules,
)
from models.calibration.measure import LONGEST_BATCH_S, _Measured, finished
from models.calibration.networks import _first_that_fits
from models.calibration.packing import packed
from models.calibration.probes import CPU_SIZES, Network, Probes
from models.configs.networks import UNET_2D
from models.denoisers import Conditioning
from models.lanes import Lanes, Layout
from models.loading import load_network, with_float32_mode
from models.pack import InvalidPack, open_pack
from models.precision import FLOAT32, Precision

BFLOAT16 = Precision(dtype="bfloat16")


def rounds_otherwise_alone(x: Tensor) -> Tensor:
    return x * (1.0 if len(x) > 1 else 1.0000001)


def rounds_otherwise_from_eight(x: Tensor) -> Tensor:
    return x * (1.0 if len(x) < 8 else 1.0000001)


def probes() -> Probes:
    return Probes((4, 14, 14), 1000, torch.device("cpu"), [{"labels": torch.tensor(0)}])


def measured(
    network: Network, by_rule: NetworkCalibration | None = None, known: NetworkCalibration | None = None
) -> NetworkCalibration:
    with Lanes(Layout(lanes=2, threads=1)) as lanes:
        one = _Measured(network, probes(), lanes)
        compared = finished(one.compared(by_rule or NetworkCalibration(), known))
        return compared if known else finished(one.timed(compared))


@pytest.mark.parametrize(
    ("compute", "reference", "sizes", "is_bitwise"),
    [
        (lambda x: 2 * x, 1, CPU_SIZES, True),
        (rounds_otherwise_alone, 1, (1,), True),
        (rounds_otherwise_alone, 4, CPU_SIZES[1:], True),
        (rounds_otherwise_from_eight, 1, (1, 2, 3, 4, 6), True),
        (rounds_otherwise_from_eight, 16, CPU_SIZES[5:], True),
        (lambda x: x - x.mean(0), 1, (1,), True),
        (lambda x: x - x.mean(0), 4, CPU_SIZES, False),
        (lambda x: x + torch.rand_like(x), 1, CPU_SIZES, False),
    ],
    ids=[
        "rows are alone",
        "another kernel for the reference",
        "another kernel for a row alone",
        "another kernel for many",
        "the reference is of many",
        "neighbours leak, and the reference has none",
        "neighbours leak",
        "never twice the same",
    ],
)
def test_batches_in_use_are_those_that_repeat_the_reference(
    compute: Callable[[Tensor], Tensor], reference: int, sizes: tuple[int, ...], is_bitwise: bool
) -> None:
    by_rule = NetworkCalibration(reference=reference)
    assert (by_rule.sizes, by_rule.is_measured) == ((reference,), False), "before it is measured"
    found = measured(lambda x, timesteps, told: (compute(x),), by_rule)
    assert found.is_measured
    assert found.sizes == sizes
    assert found.is_bitwise is is_bitwise
    assert found.knee in sizes


def test_no_kernel_is_made_on_two_lanes_at_once() -> None:
    """Of two lanes that made a kernel for the same shape at once, one in fifty got one that rounds otherwise."""
    made: set[int] = set()
    making, crowded = threading.Lock(), []

    def network(x: Tensor, timesteps: Tensor, told: Conditioning) -> tuple[Tensor, ...]:
        if len(x) not in made:
            crowded.append(not making.acquire(blocking=False))
            time.sleep(0.02)
            made.add(len(x))
            making.release()
        return (2 * x,)

    measured(network)
    assert made == set(CPU_SIZES)
    assert len(crowded) == len(CPU_SIZES)
    assert not any(crowded)


def test_known_times_are_taken_over_and_bits_are_compared_again() -> None:
    times = [BatchSize(rows=rows, row_ms=rows + 0.5, bits="of another process") for rows in (1, 4, 16)]
    known = NetworkCalibration(measured=tuple(times), row_flop=7)
    calls: list[int] = []

    def network(x: Tensor, timesteps: Tensor, told: Conditioning) -> tuple[Tensor, ...]:
        calls.append(len(x))
        return (rounds_otherwise_from_eight(x),)

    found = measured(network, known=known)
    assert found.sizes == (1, 4)
    assert [(size.rows, size.row_ms) for size in found.measured] == [(1, 1.5), (4, 4.5), (16, 16.5)]
    assert found.row_flop == 7
    assert len(calls) == 8 + 4 + 4, "every probe in every place, and nothing for the stopwatch"


def test_a_batch_that_takes_too_long_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("models.calibration.measure.time.perf_counter", lambda: now[0])
    largest: list[int] = []
    ticking = threading.Lock()

    def network(x: Tensor, timesteps: Tensor, told: Conditioning) -> tuple[Tensor, ...]:
        with ticking:
            largest.append(len(x))
            now[0] += len(x) * row_s
        return (2 * x,)

    row_s = LONGEST_BATCH_S / 10
    assert measured(network).sizes == (1, 2, 3, 4)
    assert max(largest) == 4
    largest.clear()
    row_s = 2 * LONGEST_BATCH_S
    found = measured(network)
    assert (found.sizes, found.is_bitwise, found.is_measured) == ((1,), True, True)
    assert len(largest) <= 4, "one row on each lane, and one to count its operations"


def without_memory_beyond(most: int) -> Network:
    def network(x: Tensor, timesteps: Tensor, told: Conditioning) -> tuple[Tensor, ...]:
        if len(x) > most:
            raise torch.OutOfMemoryError("for the maps")
        return (2 * x,)

    return network


@pytest.mark.parametrize("most", [24, 2])
def test_batches_without_memory_are_left_out(most: int) -> None:
    assert measured(without_memory_beyond(most)).sizes == tuple(size for size in CPU_SIZES if size <= most)


def test_a_reference_without_memory_leaves_it_at_the_rules() -> None:
    times = NetworkCalibration(measured=tuple(BatchSize(rows=rows, row_ms=1.0, bits="") for rows in (1, 2, 4, 8)))
    by_rule = NetworkCalibration(reference=4)
    assert measured(without_memory_beyond(2), by_rule, times) == by_rule


def test_the_first_format_that_has_memory_and_finite_numbers_is_taken() -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Loaded:
        def __init__(self, precision: Precision) -> None:
            assert not alive, "a GPU may have no memory for two"
            if precision.tf32:
                raise torch.OutOfMemoryError("for the weights")
            self.precision, self.itself = precision, self
            alive.add(self)

    tf32 = Precision(tf32=True)
    found, loaded = _first_that_fits(Loaded, [tf32, BFLOAT16, FLOAT32], lambda loaded: loaded.precision != BFLOAT16)
    assert (found.precision, loaded.precision) == (FLOAT32, FLOAT32)
    del loaded
    gc.collect()
    with pytest.raises(InvalidPack, match="no memory for its weights in float32, TF32"):
        _first_that_fits(Loaded, [tf32], lambda loaded: True)


CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("capability", "formats", "of_gradients", "of_encoders"),
    [
        ((9, 0), ["bfloat16, channels last"], ["bfloat16, channels last"], ["bfloat16"]),
        ((8, 0), ["bfloat16, channels last"], ["bfloat16, channels last"], ["bfloat16"]),
        (
            (7, 5),
            ["float16, channels last", "float32, channels last"],
            ["float32, channels last"],
            ["float16", "float32"],
        ),
        ((6, 1), ["float32, channels last"], ["float32, channels last"], ["float32"]),
    ],
)
def test_number_formats_follow_from_the_device(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    formats: list[str],
    of_gradients: list[str],
    of_encoders: list[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert list(map(str, rules.precisions(CUDA))) == formats
    assert list(map(str, rules.precisions(CUDA, by_gradient=True))) == of_gradients
    assert [rules.encoders(CUDA, precision) for precision in rules.precisions(CUDA)] == of_encoders
    assert rules.encoders(torch.device("cpu"), BFLOAT16) == "float32"


@pytest.mark.parametrize(
    ("limit", "has", "expected"),
    [
        ("", {"avx512_bf16": True}, "bfloat16"),
        ("", {"amx_bf16": True}, "bfloat16"),
        ("", {"avx512_f": True}, "float32"),
        ("", {}, "float32"),
        ("AVX512_CORE", {"avx512_bf16": True}, "float32"),
        ("avx2", {"avx512_bf16": True}, "float32"),
        ("AVX512_CORE_AMX", {"amx_bf16": True}, "bfloat16"),
    ],
)
def test_a_cpu_computes_in_bfloat16_if_it_has_the_instructions(
    monkeypatch: pytest.MonkeyPatch, limit: str, has: dict[str, bool], expected: str
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    [precision] = rules.precisions(torch.device("cpu"))
    assert precision.dtype == expected
    assert rules.precisions(torch.device("cpu"), by_gradient=True) == (FLOAT32,)


def test_small_networks_have_a_lane_for_each_core_and_large_ones_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.calibration.rules.CORES", 12)
    cpu = torch.device("cpu")
    assert str(rules.layout(cpu, 2_900_000)) == "12 x 1 thread"
    assert str(rules.layout(cpu, 860_000_000)) == "1 x 12 threads"
    assert str(rules.layout(CUDA, 2_900_000)) == "1 x 12 threads"


@pytest.mark.parametrize(("gflop", "rows"), [(1, 16), (118, 16), (800, 4), (6_000, 1)])
def test_a_gpus_reference_batch_is_as_many_rows_as_take_no_longer_than_one(gflop: int, rows: int) -> None:
    assert rules.reference_rows(CUDA, gflop * 10**9) == rows
    assert rules.reference_rows(torch.device("cpu"), gflop * 10**9) == 1


def test_an_operator_may_choose_the_format(small_pack: Path) -> None:
    pack, device = open_pack(str(small_pack)), torch.device("cpu")
    for choice, of_denoiser, of_classifier in (
        ("float32", "float32", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float16", "float16", "float32"),
    ):
        networks = load_networks(pack, device, precision=choice)
        by_rule, loaded = networks.by_rule, (networks.denoiser.network, networks.steering.network)
        assert by_rule.classifier is not None
        assert (by_rule.denoiser.precision.dtype, by_rule.classifier.precision.dtype) == (of_denoiser, of_classifier)
        assert [str(network.dtype) for network in loaded] == [f"torch.{of_denoiser}", f"torch.{of_classifier}"]
    with pytest.raises(InvalidPack, match="precision tf32 is for CUDA"):
        load_networks(pack, device, precision="tf32")


def test_what_was_measured_is_kept_and_what_another_version_wrote_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = FileCalibrations(tmp_path)
    network = NetworkCalibration(
        precision=BFLOAT16, reference=1, measured=(BatchSize(rows=1, row_ms=0.3, bits="a"),), row_flop=3
    )
    found = Calibration(layout=Layout(lanes=2, threads=1), denoiser=network, classifier=None)
    assert kept.load("key") is None
    kept.save("key", found)
    assert kept.load("key") == found
    kept.path("key").write_text(json.dumps({"key": "", "device": "", "layouts": {}}))
    assert kept.load("key") is None
    assert caplog.messages == []

    monkeypatch.setattr(Path, "home", lambda: Path("~nobody-of-that-name").expanduser())
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for unusable in (FileCalibrations(Path("/proc/nowhere")), FileCalibrations(Path("/dev/null")), FileCalibrations()):
        caplog.clear()
        for _ in range(2):
            assert unusable.load("key") is None
            unusable.save("key", found)
        assert len(caplog.messages) == 1, "a cache that can't be used is no fault, and is mentioned once"
        assert "XDG_CACHE_HOME" in caplog.text


def test_a_pack_is_measured_in_the_format_of_the_rule(
    small_pack: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("models.calibration.probes.CPU_SIZES", (1, 2))
    pack, device = open_pack(str(small_pack)), torch.device("cpu")
    found = calibrated(pack, device)
    assert [size.rows for size in found.denoiser.measured] == [1, 2]
    assert found.denoiser.precision == rules.precisions(device)[0]
    assert found.classifier is not None
    assert found.denoiser.row_flop > 0
    assert found.classifier.row_flop > 0
    assert 0.2 < found.denoiser.reused_share < 0.6
    assert found.denoiser.reusing.row_flop == round(found.denoiser.reused_share * found.denoiser.row_flop)
    assert found.denoiser.kept_bytes == 32 * 14 * 14 * getattr(torch, found.denoiser.precision.dtype).itemsize
    rows = max(network.row_bytes * network.sizes[-1] for network in (found.denoiser, found.classifier))
    assert found.batch_bytes == found.layout.lanes * rows > 0
    again = calibrated(pack, device)
    assert again.batch_bytes == found.batch_bytes
    assert found.picture_bytes(4) >= 4 * found.layout.lanes * found.denoiser.row_bytes
    assert [size.row_ms for size in again.denoiser.measured] == [size.row_ms for size in found.denoiser.measured]


def test_attention_leaves_a_row_alone_in_the_layout_that_it_has_in_company() -> None:
    network = load_network(UNet2DModel, open_pack("fashion").component("unet"), torch.device("cpu"), keys=UNET_2D)
    layouts: dict[int, list[tuple[int, ...]]] = {1: [], 2: []}
    for module in network.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(lambda _, given, output: layouts[len(output)].append(output.stride()))
    for rows in layouts:
        network(torch.zeros(rows, 4, 14, 14), 500, class_labels=torch.zeros(rows, dtype=torch.long))
    assert layouts[1] == layouts[2] != []


class Multiplying:
    """What CUDA would be told; no device is needed to see that."""

    def forward(self, meanwhile: Callable[[], object] = lambda: None) -> list[str]:
        meanwhile()
        return [self.decode(), torch.backends.cuda.matmul.fp32_precision]

    def decode(self) -> str:
        return str(torch.backends.cudnn.conv.fp32_precision)  # type: ignore[attr-defined]


def test_float32_is_multiplied_in_tf32_where_that_was_chosen_and_nowhere_else() -> None:
    adapter, untold = Multiplying(), Multiplying().decode()
    for device, precision in ((torch.device("cpu"), Precision(tf32=True)), (CUDA, BFLOAT16)):
        with_float32_mode(adapter, device, decode=precision)
        assert adapter.decode() == untold
    with_float32_mode(adapter, CUDA, forward=Precision(tf32=True), decode=FLOAT32)
    assert adapter.forward() == ["ieee", "tf32"]
    with pytest.raises(ZeroDivisionError):
        adapter.forward(lambda: 1 / 0)
    assert Multiplying().decode() == untold


def test_a_tf32_network_and_an_exact_one_do_not_multiply_at_once() -> None:
    rounding, exact = Multiplying(), Multiplying()
    with_float32_mode(rounding, CUDA, forward=Precision(tf32=True))
    with_float32_mode(exact, CUDA, forward=FLOAT32)
    inside, other_asks = Event(), Event()
    with ThreadPoolExecutor(2) as pool:

        def meanwhile() -> None:
            inside.set()
            assert other_asks.wait(30)

        first = pool.submit(rounding.forward, meanwhile)
        assert inside.wait(30)
        second = pool.submit(exact.forward)
        with pytest.raises(TimeoutError):
            second.result(0.2)
        other_asks.set()
        assert (first.result(), second.result()) == (["tf32", "tf32"], ["ieee", "ieee"])


def test_settling_products_keeps_no_network_alive() -> None:
    adapter = Multiplying()
    with_float32_mode(adapter, CUDA, forward=FLOAT32)
    kept = weakref.ref(adapter)
    del adapter
    assert kept() is None


def of_times(row_ms: dict[int, float]) -> NetworkCalibration:
    """What would have been found for these sizes."""
    return NetworkCalibration(
        reference=min(row_ms),
        measured=tuple(BatchSize(rows=size, row_ms=each, bits="") for size, each in row_ms.items()),
    )


def test_what_a_batch_takes_besides_its_network_costs_less_of_the_device_while_other_lanes_go_on() -> None:
    of_one_lane = of_times({8: 1.95, 16: 1.92, 32: 1.9})
    assert (of_one_lane.knee, replace(of_one_lane, lanes=4).knee) == (16, 8)


def test_two_networks_with_few_rows_have_a_lane_each_and_with_many_they_share_all() -> None:
    network = of_times({1: 5.0, 2: 3.0, 4: 2.2, 8: 2.0, 16: 1.9, 32: 1.9})
    assert packed([(network, 2), (network, 2)], lanes=2, limit=32) == [[2], [2]]
    assert packed([(network, 48), (network, 8)], lanes=2, limit=32) == [[16, 16, 8, 8], [4, 4]]
    assert packed([(network, 2), (network, 2)], lanes=1, limit=32) == [[2], [2]]


@pytest.mark.parametrize(
    ("rows", "lanes", "limit", "batches"),
    [
        (8, 1, 32, [8]),
        (9, 1, 32, [8, 1]),  # 22 ms and two for the batches' own time, where a padded one takes 30.4
        (7, 1, 32, [7]),
        (40, 1, 32, [32, 8]),
        (40, 1, 16, [16, 16, 8]),
        (18, 2, 32, [8, 8, 1, 1]),
        (3, 4, 32, [1, 1, 1]),
        (5, 1, 0, [1] * 5),
    ],
)
def test_rows_are_split_into_the_batches_that_are_done_soonest(
    rows: int, lanes: int, limit: int, batches: list[int]
) -> None:
    network = of_times({1: 5.0, 2: 3.0, 4: 2.2, 8: 2.0, 16: 1.9, 32: 1.9})
    assert network.batches(rows, lanes=lanes, limit=limit) == batches


def test_rows_are_not_split_into_a_size_that_was_measured_in_a_lucky_moment() -> None:
    network = of_times({1: 9.0, 2: 5.0, 4: 3.6, 8: 4.4, 16: 4.0})
    assert network.batches(16, lanes=1, limit=16) == [16]
    assert network.row_seconds(8) == pytest.approx(8 * 0.004)
    assert network.knee == 4, "four rows take no longer, each"


@pytest.mark.parametrize(("rows", "padded"), [(2, 2), (5, 8), (6, 8), (8, 8), (9, 16), (17, 17)])
def test_a_batch_is_padded_to_the_size_that_is_done_soonest(rows: int, padded: int) -> None:
    calibration = of_times({2: 4.0, 6: 5.0, 8: 3.0, 16: 2.0})  # six rows take longer than eight
    assert max(rows, calibration.padded(rows)) == padded


def test_before_it_is_measured_every_row_is_in_a_reference_batch() -> None:
    alone = NetworkCalibration(reference=1)
    assert alone.batches(5, lanes=2, limit=48) == [1] * 5
    assert [alone.padded(rows) for rows in (1,)] == [1]
    four = replace(alone, reference=4)
    assert four.batches(5, lanes=2, limit=48) == [3, 2]
    assert four.padded(3) == 4
