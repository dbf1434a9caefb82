"""Rules for everything that changes a picture's bits: number format, threads per lane, and the reference batch.

None of these may depend on a timing: timings are noisy, so two first starts of one machine could draw different bytes.
"""

from __future__ import annotations

import torch

from models.calibration.machine import multiplies_bfloat16
from models.lanes import CORES, SMALL, Layout
from models.precision import FLOAT32, Precision

GPU_BATCH_FLOP = 5e12
"""Most FLOP of the reference batch on a GPU: about 10 ms at 500 TFLOP/s, roughly the time to launch a deep network's
kernels for a single row."""
MOST_REFERENCE_ROWS = 16


def precisions(device: torch.device, *, by_gradient: bool = False) -> tuple[Precision, ...]:
    """Number formats for a network on the device; the first whose range and memory suffice is used.

    | device | network | its gradient |
    |---|---|---|
    | CPU with AVX512-BF16 or AMX | bfloat16 | float32 |
    | other CPUs | float32 | float32 |
    | CUDA, compute capability 8 and later | bfloat16 | bfloat16 |
    | CUDA, compute capability 7 | float16, or float32 if that overflows | float32 |
    | other devices | float32 | float32 |

    Small gradients underflow to zero in float16; on CPUs float32 is as fast for gradients, or faster (`cynosure
    calibrate fashion --precision bfloat16`). On CUDA convolutions use channels-last memory; on a CPU oneDNN chooses.
    """
    if device.type == "cpu":
        return (Precision(dtype="bfloat16"),) if multiplies_bfloat16() and not by_gradient else (FLOAT32,)
    if device.type != "cuda":
        return (FLOAT32,)
    exact = Precision(channels_last=True)
    generation, _ = torch.cuda.get_device_capability(device)
    if generation >= 8:
        return (Precision(dtype="bfloat16", channels_last=True),)
    if generation == 7 and not by_gradient:
        return Precision(dtype="float16", channels_last=True), exact
    return (exact,)


def encoders(device: torch.device, precision: Precision) -> str:
    """The dtype of the text encoders and the autoencoder of a denoiser that runs in `precision`.

    On CUDA it is the denoiser's: bfloat16 from compute capability 8, float16 at 7. An autoencoder whose config.json has
    `force_upcast`, as XL's has, may overflow in float16 and runs in float32 instead. On other devices all are float32.
    """
    return precision.dtype if device.type == "cuda" else "float32"


def layout(device: torch.device, num_parameters: int) -> Layout:
    """How the device's cores are split: one lane per core, or all cores for one batch of a large network.

    The number of threads determines where sums are split, and so changes bits.
    """
    if device.type == "cpu" and num_parameters <= SMALL:
        return Layout(lanes=CORES, threads=1)
    return Layout(lanes=1, threads=CORES)


def reference_rows(device: torch.device, row_flop: int) -> int:
    """Rows of the reference batch, whose bits every other batch must reproduce.

    On a CPU it is a single row, which has no neighbours. On a GPU the kernels for one row differ from those for many,
    and a batch of a few rows takes about as long as one row; it has as many rows as are expected to take no longer.
    """
    if device.type == "cpu":
        return 1
    rows = MOST_REFERENCE_ROWS
    while rows > 1 and rows * row_flop > GPU_BATCH_FLOP:
        rows //= 2
    return rows
