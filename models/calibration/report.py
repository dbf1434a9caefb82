"""A calibration in words."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from models.calibration.machine import device_name, instruction_sets
from models.calibration.result import Calibration, NetworkCalibration
from models.pack import Pack


def report(pack: Pack, device: torch.device, found: Calibration) -> Iterator[str]:
    """What a stranger needs to say about their machine, line by line: hardware, formats, batch sizes and their bits."""
    yield f"{pack.name} on {device_name(device)}, torch {torch.__version__}"
    yield f"instruction sets: {instruction_sets(device)}"
    yield f"cores: {found.layout}"
    yield from _network("denoiser", found.denoiser)
    if found.classifier is not None:
        yield from _network("classifier", found.classifier)


def _network(name: str, found: NetworkCalibration) -> Iterator[str]:
    yield f"{name}: {found.precision}, {found.row_flop / 1e9:.2f} GFLOP a row"
    yield f"  {'rows':>6} {'ms a row':>9} {'rows/s':>8}   bits"
    for size in found.measured:
        mark = "*" if size.rows in found.sizes else " "
        yield f"  {size.rows:>6} {size.row_ms:>9.3f} {1000 / size.row_ms:>8.0f} {mark} {size.bits}"
    yield f"  batches are padded to: {', '.join(map(str, found.sizes))}; row budget {found.knee}"
    yield f"  the same bits beside any other rows: {'yes' if found.is_bitwise else 'no'}"
