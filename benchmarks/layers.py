"""`python -m benchmarks.layers`: CPU layers and graphs against torch's layers, in both packs' denoisers and alone.

With `--formats`, the denoisers in each number format instead; with `--compile`, a transformer compiled as a whole and
block by block.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from unittest import mock

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.utils.flop_counter import FlopCounterMode

from models import loading
from models.calibration import rules
from models.calibration.measure import in_turns
from models.calibration.networks import keep_freed_memory
from models.calibration.probes import example_conditionings, stacked
from models.cpu_layers import with_cpu_layers
from models.denoisers import Conditioning, Denoiser, load_denoiser
from models.lanes import CORES, Lanes, Layout, set_thread_count
from models.pack import Pack, open_pack
from models.precision import FLOAT32, Precision

CPU = torch.device("cpu")
EVALUATIONS = 5


def milliseconds(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    call()
    return (clock() - started) * 1000


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
    """Print two lines for each pack and batch size, on one lane and on all at once, and each pack's operators a row."""
    with Lanes(Layout(lanes=CORES, threads=1)) as lanes:
        for name in ("fashion", "emoji"):
            pack = open_pack(name)
            with mock.patch.object(loading, "with_cpu_layers"):
                torchs: Denoiser = load_denoiser(pack, CPU, precision)
            ours: Denoiser = load_denoiser(pack, CPU, precision)
            for rows in (1, 2, 4, 8, 16):
                batch = batch_of(ours, pack, rows)
                calls = {
                    "torch": partial(type(torchs).forward, torchs, *batch),
                    "layers": partial(type(ours).forward, ours, *batch),
                    "graphs": partial(ours.forward, *batch),
                }
                for _ in range(2):
                    calls["graphs"]()  # the second call records
                what = f"{name}, {precision}, {rows} row{'s' * (rows > 1)}"
                print_row(what, calls)
                print_row(f"{what} on each of {CORES} lanes", {
                    variant: partial(lanes.run, [call] * CORES) for variant, call in calls.items()
                })  # fmt: skip
                if rows == 1:
                    counts = [f"{operators(call):>9}" for call in calls.values()]
                    print(f"{f'{name}, operators a row':<58} {' '.join(counts)}")


def format_rows() -> None:
    """Print a line for each pack, batch size and number format: a core's own ms a row, and how far off the output is.

    That is the root mean square of the difference from float32's output, as a share of that output's.
    """
    formats = {
        "float32": FLOAT32,
        "bfloat16": Precision(dtype="bfloat16"),
        "int8": replace(rules.precisions(CPU)[0], int8_products=True),
    }
    for name in ("fashion", "emoji"):
        pack = open_pack(name)
        denoisers: dict[str, Denoiser] = {each: load_denoiser(pack, CPU, formats[each]) for each in formats}
        for rows in (1, 4, 16):
            batch = batch_of(denoisers["float32"], pack, rows)
            calls = {each: partial(denoiser.forward, *batch) for each, denoiser in denoisers.items()}
            outputs = {each: [call(), call()][1] for each, call in calls.items()}  # the second call records
            ms = in_turns({each: partial(milliseconds, call, time.thread_time) for each, call in calls.items()})
            exact = outputs["float32"]
            for each, output in outputs.items():
                off = ((output - exact).square().mean() / exact.square().mean()).sqrt().item()
                what = f"{name}, {rows} row{'s' * (rows > 1)}, {formats[each]}"
                print(f"{what:<58} {ms[each] / rows:>9.2f} {off:>9.2%}", flush=True)


def compile_rows() -> None:
    """Print CPU seconds of the first call, then ms of a call, of DiTs of random weights that `torch.compile` compiles.

    As `models.loading` does it, as a whole; and once for all blocks (diffusers' regional compilation).
    """
    inductor.force_disable_caches, inductor.compile_threads = True, 1
    x, timesteps, labels = torch.randn(4, 4, 16, 16), torch.full((4,), 500), torch.arange(4)
    for depth in (8, 28):
        for how in ("whole", "by block"):
            torch.compiler.reset()
            network = DiTTransformer2DModel(
                num_layers=depth, num_attention_heads=4, attention_head_dim=64, out_channels=4, sample_size=16,
                num_embeds_ada_norm=10,
            ).eval().requires_grad_(False)  # fmt: skip
            network._repeated_blocks = ["BasicTransformerBlock"]
            compiled = network.compile if how == "whole" else network.compile_repeated_blocks
            compiled(dynamic=False, options={"freezing": True})
            call = torch.inference_mode()(partial(network, x, timestep=timesteps, class_labels=labels))
            first = milliseconds(call, cpu_seconds) / 1000
            [ms] = in_turns({how: partial(milliseconds, call, time.thread_time)}).values()
            print(f"{f'DiT of {depth} blocks, {how}':<58} {first:>9.1f} {ms:>9.2f}", flush=True)


def cpu_seconds() -> float:
    """CPU time of this process and of the C++ compilers that it ran."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def operators(call: Callable[[], object]) -> int:
    """How many operators a call calls."""
    with torch.profiler.profile(acc_events=True) as profiled:
        call()
    return sum(event.count for event in profiled.key_averages())


def layer_rows(precision: Precision) -> None:
    """Print a line for each kind of layer, on maps like those of `fashion` and of larger networks, channels last."""
    dtype = getattr(torch, precision.dtype)
    convolution, normalization = "convolution, 3x3", "group normalization, 32 groups"
    for name, channels, side in (
        (convolution, 96, 14),
        *((normalization, *size) for size in ((96, 14), (160, 7), (256, 14), (320, 16), (320, 32))),
    ):
        layer = nn.Conv2d(channels, channels, 3, padding=1) if name == convolution else nn.GroupNorm(32, channels)
        plain = nn.Sequential(layer).to(dtype).eval().requires_grad_(False)
        ours = with_cpu_layers(copy.deepcopy(plain))
        x = torch.randn(8, channels, side, side, dtype=dtype).to(memory_format=torch.channels_last)
        calls = {"torch": partial(plain, x), "ours": partial(ours, x)}
        print_row(f"{name}, {precision}, 8 x {channels} x {side} x {side}", calls)


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
    """Print milliseconds on threads of one core: with torch's layers, with ours, and with ours as a graph."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=main.__doc__)
    parser.add_argument("--bfloat16", action="store_true", help="use bfloat16, if the machine supports it")
    parser.add_argument("--formats", action="store_true", help="only compare number formats, by a core's own time")
    parser.add_argument("--compile", action="store_true", help="only compile, as a whole and block by block")
    arguments = parser.parse_args()
    precision = Precision(dtype="bfloat16") if arguments.bfloat16 else FLOAT32
    set_thread_count(1)
    keep_freed_memory()
    if arguments.formats:
        print(f"{'denoiser':<58} {'ms a row':>9} {'off':>9}")
        return format_rows()
    if arguments.compile:
        print(f"{'network':<58} {'first, s':>9} {'ms':>9}")
        return compile_rows()
    print(f"{'denoiser':<58} {'torch':>9} {'layers':>9} {'graphs':>9}")
    denoiser_rows(precision)
    print(f"\n{'layer':<58} {'torch':>9} {'ours':>9}")
    layer_rows(precision)
    profile(precision)
    return None


if __name__ == "__main__":
    main()
