"""Calibration finds the batch sizes in which a row keeps its bits, for networks whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.engine import Calibration, cached_calibration
from models.engine.calibrate import CPU_SIZES, BatchSize, NetworkCalibration, _calibrate_network, _Probes
from models.engine.lanes import Lanes, Layout
from models.loading import FLOAT32, open_pack


def rounds_otherwise_alone(x: Tensor) -> Tensor:
    return x * (1.0 if len(x) > 1 else 1.0000001)


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
    pack = open_pack("fashion")
    device = torch.device("cpu")
    probes = _Probes((4, 14, 14), pack.num_train_timesteps, device, [{"labels": torch.tensor(0)}])
    with Lanes(Layout(lanes=2, threads=1)) as lanes:
        found = _calibrate_network(lambda precision: lambda x, timesteps, told: (compute(x),), probes, lanes)
    assert found.sizes == sizes
    assert found.is_bitwise is is_bitwise
    assert found.knee in sizes


@pytest.mark.parametrize(("rows", "padded"), [(2, 2), (5, 8), (6, 8), (8, 8), (9, 16), (17, 17)])
def test_a_batch_is_padded_to_the_size_that_is_done_soonest(rows: int, padded: int) -> None:
    row_ms = {2: 4.0, 6: 5.0, 8: 3.0, 16: 2.0}  # six rows take longer than eight
    calibration = NetworkCalibration(
        precision=FLOAT32,
        tried={},
        measured=tuple(BatchSize(rows=size, row_ms=each, bits="") for size, each in row_ms.items()),
        sizes=tuple(row_ms),
        is_bitwise=True,
    )
    assert max(rows, calibration.padded(rows)) == padded


def test_a_calibration_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pack, device = open_pack("fashion"), torch.device("cpu")
    first = cached_calibration(pack, device)
    assert cached_calibration(pack, device) == first == Calibration.from_json(first.to_json())
    assert first.is_reproducible
