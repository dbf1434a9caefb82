"""Calibration finds the batch sizes in which a row keeps its bits, for networks whose answer is known."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from models.classifiers import Steering, load_steering
from models.denoisers import Conditioning
from models.engine import Calibration, cached_calibration, calibrate
from models.engine.calibrate import _calibrate_network, _least_padded, _one_at_a_time
from models.engine.calibration import BatchSize, NetworkCalibration
from models.engine.lanes import Lanes, Layout, possible_layouts
from models.engine.packing import packed
from models.engine.probes import CPU_SIZES, Network, Probes
from models.loading import FLOAT32, InvalidPack, Pack, Precision, load_network, open_pack, settle_products


def rounds_otherwise_alone(x: Tensor) -> Tensor:
    return x * (1.0 if len(x) > 1 else 1.0000001)


def probes() -> Probes:
    return Probes((4, 14, 14), 1000, torch.device("cpu"), [{"labels": torch.tensor(0)}])


@pytest.mark.parametrize(
    ("compute", "sizes", "is_bitwise"),
    [
        (lambda x: 2 * x, CPU_SIZES, True),
        (rounds_otherwise_alone, CPU_SIZES[1:], True),
        (lambda x: x - x.mean(0), (1,), True),
        (lambda x: x + torch.rand_like(x), CPU_SIZES, False),
    ],
    ids=["rows are alone", "another kernel at size 1", "neighbours leak", "never twice the same"],
)
def test_the_class_of_a_known_network(
    compute: Callable[[Tensor], Tensor], sizes: tuple[int, ...], is_bitwise: bool
) -> None:
    with Lanes(Layout(lanes=2, threads=1)) as lanes:
        found = _calibrate_network(lambda precision: lambda x, timesteps, told: (compute(x),), probes(), lanes)
    assert found.sizes == sizes
    assert found.is_bitwise is is_bitwise
    assert found.knee in sizes


BFLOAT16 = Precision(dtype="bfloat16")


def test_number_formats_and_batches_without_memory_are_left_out() -> None:
    def network_at(precision: Precision) -> Network:
        if precision == BFLOAT16:
            raise torch.OutOfMemoryError("for the weights")

        def network(x: Tensor, timesteps: Tensor, told: Conditioning) -> tuple[Tensor, ...]:
            if len(x) > 24:
                raise torch.OutOfMemoryError("for the maps")
            return (2 * x,)

        return network

    def fits_nowhere(precision: Precision) -> Network:
        raise torch.OutOfMemoryError("for the weights")

    def overflows(precision: Precision) -> Network:
        return lambda x, timesteps, told: (x / 0,)

    with Lanes(Layout(lanes=2, threads=1)) as lanes:
        found = _calibrate_network(network_at, probes(), lanes)
        assert list(found.tried) == ["float32"]
        assert found.sizes == tuple(size for size in CPU_SIZES if size <= 24)
        for network in (fits_nowhere, overflows):
            with pytest.raises(
                InvalidPack, match="in no number format has cpu memory for 16 rows of it and gives finite"
            ):
                _calibrate_network(network, probes(), lanes)


def test_a_gpu_is_given_one_network_at_a_time() -> None:
    class HoldsItself:
        def __init__(self, precision: Precision) -> None:
            self.precision, self.itself = precision, self

    alive: weakref.WeakSet[HoldsItself] = weakref.WeakSet()

    def load(precision: Precision) -> HoldsItself:
        assert not alive
        network = HoldsItself(precision)
        alive.add(network)
        return network

    loaded = _one_at_a_time(load)
    assert loaded(FLOAT32) is loaded(FLOAT32)
    assert loaded(BFLOAT16).precision == BFLOAT16


def test_a_classifier_whose_products_are_settled_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(pack: Pack, device: torch.device, precision: Precision = FLOAT32) -> Steering | None:
        steering = load_steering(pack, device, precision)
        settle_products(steering, CUDA, gradient=precision)
        return steering

    module = sys.modules[calibrate.__module__]  # by its dotted name it is the function
    monkeypatch.setattr(module, "load_steering", load)
    monkeypatch.setattr("models.engine.probes.CPU_SIZES", (1, 2))
    monkeypatch.setattr(module, "REFERENCE_SIZE", 2)
    found = calibrate(open_pack("fashion"), torch.device("cpu"))
    assert found.classifier is not None
    assert [size.rows for size in found.classifier.measured] == [1, 2]


@pytest.mark.parametrize(
    ("bfloat16_ms", "chosen"),
    [(1.1, BFLOAT16), (1.3, FLOAT32)],
    ids=["about as quick, without padding", "not worth it"],
)
def test_of_formats_about_as_quick_the_one_that_pads_least_is_chosen(bfloat16_ms: float, chosen: Precision) -> None:
    bits = {FLOAT32: {1: "a", 2: "b", 4: "b"}, BFLOAT16: {1: "c", 2: "c", 4: "c"}}
    assert _least_padded({FLOAT32: 1.0, BFLOAT16: bfloat16_ms}, lambda precision: bits[precision]) == chosen


def test_attention_leaves_a_row_alone_in_the_layout_that_it_has_in_company() -> None:
    network = load_network(UNet2DModel, open_pack("fashion").component("unet"), torch.device("cpu"))
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


CUDA = torch.device("cuda")


def test_float32_is_multiplied_in_tf32_where_that_was_chosen_and_nowhere_else() -> None:
    adapter, untold = Multiplying(), Multiplying().decode()
    for device, precision in ((torch.device("cpu"), Precision(tf32=True)), (CUDA, BFLOAT16)):
        settle_products(adapter, device, decode=precision)
        assert adapter.decode() == untold
    settle_products(adapter, CUDA, forward=Precision(tf32=True), decode=FLOAT32)
    assert adapter.forward() == ["ieee", "tf32"]
    with pytest.raises(ZeroDivisionError):
        adapter.forward(lambda: 1 / 0)
    assert Multiplying().decode() == untold


def test_a_tf32_network_and_an_exact_one_do_not_multiply_at_once() -> None:
    rounding, exact = Multiplying(), Multiplying()
    settle_products(rounding, CUDA, forward=Precision(tf32=True))
    settle_products(exact, CUDA, forward=FLOAT32)
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
    settle_products(adapter, CUDA, forward=FLOAT32)
    kept = weakref.ref(adapter)
    del adapter
    assert kept() is None


def calibrated(row_ms: dict[int, float]) -> NetworkCalibration:
    """What would have been found for these sizes."""
    return NetworkCalibration(
        precision=FLOAT32,
        tried={},
        measured=tuple(BatchSize(rows=size, row_ms=each, bits="") for size, each in row_ms.items()),
        sizes=tuple(row_ms),
        is_bitwise=True,
    )


def test_two_networks_with_few_rows_have_a_lane_each_and_with_many_they_share_all() -> None:
    network = calibrated({1: 5.0, 2: 3.0, 4: 2.2, 8: 2.0, 16: 1.9, 32: 1.9})
    assert packed([(network, 2), (network, 2)], lanes=2, limit=32) == [[2], [2]]
    assert packed([(network, 48), (network, 8)], lanes=2, limit=32) == [[24, 24], [4, 4]]
    assert packed([(network, 2), (network, 2)], lanes=1, limit=32) == [[2], [2]]


@pytest.mark.parametrize(("rows", "padded"), [(2, 2), (5, 8), (6, 8), (8, 8), (9, 16), (17, 17)])
def test_a_batch_is_padded_to_the_size_that_is_done_soonest(rows: int, padded: int) -> None:
    calibration = calibrated({2: 4.0, 6: 5.0, 8: 3.0, 16: 2.0})  # six rows take longer than eight
    assert max(rows, calibration.padded(rows)) == padded


def test_workers_that_start_together_measure_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pack, device = open_pack("fashion"), torch.device("cpu")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: cached_calibration(pack, device), range(2))
    assert first == second == Calibration.from_json(first.to_json()), "no two measurements have the same timings"
    assert first.is_reproducible


def test_layouts_leave_no_core_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.engine.lanes.CORES", 12)
    assert [str(layout) for layout in possible_layouts(torch.device("cpu"))] == [
        "1 x 12 threads", "2 x 6 threads", "3 x 4 threads", "4 x 3 threads", "6 x 2 threads", "12 x 1 thread"
    ]  # fmt: skip
