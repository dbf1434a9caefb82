"""`python -m benchmarks.adapters.loras`: what LoRAs cost, as ratios of times in one run.

Sixteen rows of Stable Diffusion's shape, through the denoiser in one batch: plain, with four different LoRAs of rank 16
on the layers of attention, and the same rows grouped by their LoRA into batches, as servers do for which a LoRA is part
of the batch. The ways take turns, so that other load meets all alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.packs import add_pack_options, benchmark_pack
from models.adapters import LowRank, RowExtras, given
from models.adapters.layers import CONVOLUTIONS, down_layer, make_adaptable
from models.calibration import load_networks
from models.calibration.measure import in_turns
from models.denoisers import Conditioning
from models.lanes import Lanes

ROWS, LORAS, RANK = 16, 4, 16
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def random_lora(network: nn.Module, layers: str, seed: int) -> RowExtras:
    """A LoRA with random weights on the layers of attention, or on all."""
    dice = torch.Generator().manual_seed(seed)
    changes: dict[nn.Module, LowRank] = {}
    for path, layer in network.named_modules():
        is_wanted = path.endswith(ATTENTION) or layers == "all"
        if is_wanted and isinstance(layer, nn.Linear | CONVOLUTIONS[0] | CONVOLUTIONS[1]):
            out, *into = layer.weight.shape
            down = torch.randn(RANK, *into, generator=dice).to(layer.weight.dtype) * 0.02
            up = torch.randn(out, RANK, generator=dice).to(layer.weight.dtype) * 0.02
            changes[layer] = LowRank(down_layer(layer, down), up)
    return RowExtras(adapters=changes)


def main() -> None:
    """Print the seconds of each way and the ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapters.loras", description=main.__doc__)
    add_pack_options(parser)
    parser.set_defaults(pack="sd-small")
    parser.add_argument("--layers", choices=("attention", "all"), default="attention")
    arguments = parser.parse_args()
    device: torch.device = arguments.device
    pack = benchmark_pack(arguments.pack)
    networks, untouched = load_networks(pack, device), load_networks(pack, device).denoiser
    denoiser: Any = networks.denoiser
    loras = [random_lora(denoiser.network, arguments.layers, seed) for seed in range(LORAS)]
    x, timesteps, conditioning = networks.probes()[0].batch(ROWS)
    lanes = Lanes(networks.by_rule.layout)
    # On a CPU the process's own seconds, which hardly depend on what else the machine does.
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def evaluated(adapter: Any, rows: list[int], extras: list[RowExtras | None]) -> Callable[[], torch.Tensor]:
        part: Conditioning = {name: tensor[rows] for name, tensor in conditioning.items()}
        own = x[rows], timesteps[rows], part

        def call() -> torch.Tensor:
            with given(extras):
                return adapter.forward(*own)

        return call

    def way(*calls: Callable[[], torch.Tensor]) -> Callable[[], float]:
        """The seconds of calls one after the other, all on one lane: what one lane's tick takes."""

        def measure() -> float:
            started = clock()
            for call in calls:
                lanes.run([call])
            if device.type == "cuda":
                torch.cuda.synchronize()
            return clock() - started

        return measure

    every = list(range(ROWS))
    by_lora = [every[number::LORAS] for number in range(LORAS)]
    nothing: list[RowExtras | None] = [None] * ROWS
    for layer in loras[0].adapters:
        make_adaptable(layer)
    seconds = in_turns(
        {
            "plain, never had a LoRA": way(evaluated(untouched, every, nothing)),
            "plain": way(evaluated(denoiser, every, nothing)),
            "mixed": way(evaluated(denoiser, every, [loras[row % LORAS] for row in every])),
            "grouped": way(
                *(evaluated(denoiser, rows, [lora] * len(rows)) for rows, lora in zip(by_lora, loras, strict=True))
            ),
        }
    )
    for name, taken in seconds.items():
        print(f"{name}: {taken:.4f} s")
    print(f"speed of {ROWS} rows with {LORAS} LoRAs, of plain rows: {seconds['plain'] / seconds['mixed']:.2f}")
    print(f"speed of one batch, of batches by LoRA: {seconds['grouped'] / seconds['mixed']:.2f}")
    print(f"speed of plain rows after LoRAs, of before: {seconds['plain, never had a LoRA'] / seconds['plain']:.2f}")


if __name__ == "__main__":
    main()
