"""`python -m benchmarks.layers`: our CPU layers against torch's, in the denoisers of both packs and in isolation."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Mapping
from functools import partial
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models import cpu_layers, loading
from models.calibration.measure import in_turns
from models.calibration.probes import example_conditionings, stacked
from models.cpu_layers import with_cpu_layers
from models.denoisers import Conditioning, Denoiser, load_denoiser
from models.lanes import set_thread_count
from models.pack import Pack, open_pack
from models.precision import FLOAT32, Precision

CPU = torch.device("cpu")
EVALUATIONS = 5


def milliseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def print_row(what: str, calls: Mapping[str, Callable[[], object]]) -> None:
    """Print every call's time, and the speed-up of the last call over the first, which is torch's."""
    ms = list(in_turns({name: partial(milliseconds, call) for name, call in calls.items()}).values())
    print(f"{what:<58} {' '.join(f'{each:>9.2f}' for each in ms)} {ms[0] / ms[-1]:>7.2f}x", flush=True)


def batch_of(denoiser: Denoiser, pack: Pack, rows: int) -> tuple[Tensor, Tensor, Conditioning]:
    """A batch of `rows` distinct rows at timestep 500."""
    examples = example_conditionings(denoiser, pack)
    conditioning = stacked([examples[row % len(examples)] for row in range(rows)], CPU)
    return torch.randn(rows, *denoiser.latent_shape), torch.full((rows,), 500.0), conditioning


def denoiser_rows(precision: Precision) -> None:
    """Print a line for each pack and batch size."""
    for name in ("fashion", "emoji"):
        pack = open_pack(name)
        denoisers: dict[str, Denoiser] = {}
        with mock.patch.object(loading, "with_cpu_layers"):
            denoisers["torch"] = load_denoiser(pack, CPU, precision)
        with mock.patch.object(cpu_layers, "has_narrow_groups", return_value=False):
            denoisers["but group norm"] = load_denoiser(pack, CPU, precision)
        denoisers["ours"] = load_denoiser(pack, CPU, precision)
        for rows in (1, 2, 8, 32):
            batch = batch_of(denoisers["ours"], pack, rows)
            calls = {variant: partial(denoiser.forward, *batch) for variant, denoiser in denoisers.items()}
            print_row(f"{name}, {precision}, {rows} row{'s' * (rows > 1)}", calls)


def layer_rows(precision: Precision) -> None:
    """Print a line for each kind of layer, on maps of the sizes that `fashion` has, channels last."""
    layers = {
        "convolution, 3x3": nn.Conv2d(96, 96, 3, padding=1),
        "group normalization, 32 groups": nn.GroupNorm(32, 96),
    }
    for name, layer in layers.items():
        plain = nn.Sequential(layer).to(getattr(torch, precision.dtype)).eval().requires_grad_(False)
        ours = with_cpu_layers(copy.deepcopy(plain))
        x = torch.randn(8, 96, 14, 14, dtype=getattr(torch, precision.dtype)).to(memory_format=torch.channels_last)
        calls = {"torch": partial(plain, x), "ours": partial(ours, x)}
        print_row(f"{name}, {precision}, 8 x 96 x 14 x 14", calls)


def profile(precision: Precision) -> None:
    """Print the operators with most of an evaluation's time, and the FLOP/s of convolutions and a matrix product."""
    pack = open_pack("fashion")
    denoiser = load_denoiser(pack, CPU, precision)
    rows = 12
    evaluate = partial(denoiser.forward, *batch_of(denoiser, pack, rows))
    evaluate()
    with FlopCounterMode(display=False) as counted:
        evaluate()
    with torch.profiler.profile() as profiled:
        for _ in range(EVALUATIONS):
            evaluate()
    spent = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    total = sum(spent.values())
    print(f"\nfashion, {precision}, {rows} rows, {total / EVALUATIONS / 1000:.0f} ms an evaluation, of which")
    for name in sorted(spent, key=spent.__getitem__, reverse=True)[:8]:
        print(f"  {name:<56} {spent[name] / total:>6.1%}")
    convolution = torch.ops.mkldnn._convolution_pointwise
    flop = counted.get_flop_counts()["Global"].get(convolution, 0) * EVALUATIONS
    square = torch.randn(768, 768, dtype=getattr(torch, precision.dtype))
    [ms] = in_turns({"product": partial(milliseconds, partial(torch.mm, square, square))}).values()
    print(f"  convolutions: {flop / spent['mkldnn::_convolution_pointwise'] / 1000:.0f} GFLOP/s; ", end="")
    print(f"a product of matrices of 768 x 768: {2 * len(square) ** 3 / ms / 1e6:.0f} GFLOP/s")


def main() -> None:
    """Print milliseconds on one thread: with torch's layers, with ours except group normalization, with all of ours."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=main.__doc__)
    parser.add_argument("--bfloat16", action="store_true", help="use bfloat16, if the machine supports it")
    precision = Precision(dtype="bfloat16") if parser.parse_args().bfloat16 else FLOAT32
    set_thread_count(1)
    print(f"{'denoiser':<58} {'torch':>9} {'but norm':>9} {'ours':>9}")
    denoiser_rows(precision)
    print(f"\n{'layer':<58} {'torch':>9} {'ours':>9}")
    layer_rows(precision)
    profile(precision)


if __name__ == "__main__":
    main()
