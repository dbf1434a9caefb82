"""Formats a calibration as text."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from models.calibration.machine import device_name, instruction_sets
from models.calibration.result import Calibration, NetworkCalibration
from models.memory import weights_of
from models.pack import Pack


def report(pack: Pack, device: torch.device, calibration: Calibration) -> Iterator[str]:
    """Describe the machine and the calibration, line by line: hardware, number formats, batch sizes and their bits."""
    yield f"{pack.name} on {device_name(device)}, torch {torch.__version__}"
    yield f"instruction sets: {instruction_sets(device)}"
    yield f"cores: {calibration.layout}"
    yield from _network(f"denoiser: {calibration.denoiser.precision}", calibration.denoiser)
    if calibration.classifier is not None:
        yield from _network(f"classifier: {calibration.classifier.precision}", calibration.classifier)
    for name, network in {"decoder": calibration.decoder, **calibration.encoders}.items():
        if network.is_measured:
            yield from _network(f"{name}: {calibration.denoiser.precision.encoders}", network)
    of_classifier = (calibration.classifier or calibration.denoiser).precision
    for role, weights in weights_of(pack, calibration.denoiser.precision, of_classifier).items():
        yield f"weights of its {role}: {weights.parameters / 1e6:.1f} M parameters, {weights.bytes / 1e6:.1f} MB"
    yield f"largest batches: {calibration.batch_bytes / 1e6:.1f} MB beside the weights"


def _network(title: str, network: NetworkCalibration) -> Iterator[str]:
    yield f"{title}, {network.row_flop / 1e9:.2f} GFLOP and {network.row_bytes / 1e6:.1f} MB a row"
    yield f"  {'rows':>6} {'ms a row':>9} {'rows/s':>8}   bits"
    for size in network.measured:
        mark = "*" if size.rows in network.sizes else " "
        yield f"  {size.rows:>6} {size.row_ms:>9.3f} {1000 / size.row_ms:>8.0f} {mark} {size.bits}"
    yield f"  batches are padded to: {', '.join(map(str, network.sizes))}; row budget {network.knee}"
    yield f"  batch-invariant bits: {'yes' if network.is_bitwise else 'no'}"
