"""Recorded passes and gradients have the bits of the originals in every family; others run as they are."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from harness.processes import wait_until
from models.adapters import RowExtras, given
from models.caching import keeping, reusing
from models.calibration.probes import Batch, Probes
from models.classifiers import ClassSteering, load_steering
from models.cpu_layers import with_cpu_layers
from models.denoisers import Denoiser, load_denoiser
from models.flop import flop_of
from models.networks import AdmClassifier
from models.pack import open_pack
from models.parity import stand_ins
from models.passes import graphs
from models.passes.graphs import Graphs
from tests.science.test_families import (
    flux,
    saved,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    with_towers,
)

CPU = torch.device("cpu")


class Watched:
    """A denoiser, batches for it, and how often Python has run its network."""

    def __init__(self, folder: str | Path) -> None:
        self.pack = open_pack(str(folder))
        self.denoiser: Denoiser = load_denoiser(self.pack, CPU)
        self.probes = Probes.of(self.denoiser, self.pack, CPU)
        self.runs = 0
        network: nn.Module = self.denoiser.network  # type: ignore[attr-defined]
        network.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.runs += 1

    def record(self, size: int) -> None:
        for _ in range(2):
            self.denoiser.forward(*self.probes.batch(size))
        self.runs = 0

    def plainly(self, *batch: Any) -> Tensor:
        """The pass by Python."""
        return type(self.denoiser).forward(self.denoiser, *batch)


@pytest.fixture(scope="module")
def fashion() -> Watched:
    return Watched("fashion")


@pytest.mark.parametrize(
    "build",
    [
        "fashion",
        "emoji",
        stable_diffusion,
        stable_diffusion_xl,
        partial(stable_diffusion_3, t5=True),
        partial(flux, distilled=True, shifts=True),
    ],
    ids=["fashion", "emoji", "SD", "XL", "SD3", "Flux"],
)
def test_a_graph_has_the_bits_of_the_pass_that_it_was_recorded_of(build: Any, tmp_path: Path) -> None:
    watched = Watched(build if isinstance(build, str) else saved(build, tmp_path)[1])
    for size in (1, 3):
        watched.record(size)
        batches = [watched.probes.batch(size) for _ in range(3)]
        found = [watched.denoiser.forward(*batch) for batch in batches]
        assert watched.runs == 0, "none of them was run by Python"
        for output, batch in zip(found, batches, strict=True):
            assert torch.equal(output, watched.plainly(*batch))


@pytest.mark.parametrize("build", ["fashion", "emoji", with_towers], ids=["class", "class given a prompt", "prompt"])
def test_a_graph_has_the_bits_of_the_gradient_that_it_was_recorded_of(build: Any, tmp_path: Path) -> None:
    steering = load_steering(open_pack(build if isinstance(build, str) else str(build(tmp_path))), CPU)
    assert steering is not None
    network: nn.Module = steering.network  # type: ignore[attr-defined]
    runs = list[None]()
    network.register_forward_hook(lambda *_: runs.append(None))
    config = network.config
    for size in (1, 3):
        rows = [steering.examples()[row % 3] for row in range(size)]
        condition = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        for call in range(5):
            x = torch.randn(size, config.in_channels, config.sample_size, config.sample_size)
            timesteps = torch.rand(size) * 900
            before = len(runs)
            found = steering.gradient(x, timesteps, condition)
            assert call < 2 or len(runs) == before, "none of them was run by Python"
            for mine, expected in zip(found, type(steering).gradient(steering, x, timesteps, condition), strict=True):
                assert torch.equal(mine, expected)


def test_adm_classifiers_have_graphs_too() -> None:
    """Their attention is of one-dimensional convolutions, whose gradients come by other operators."""
    torch.manual_seed(0)
    steering = ClassSteering(
        with_cpu_layers(stand_ins.filled(AdmClassifier(**stand_ins.classifier_config())).requires_grad_(False))
    )
    gradient = Graphs(steering.gradient)
    for _ in range(3):
        x, timesteps = torch.randn(2, 3, 32, 32), torch.rand(2) * 900
        condition = {
            name: torch.stack([rows[name] for rows in steering.examples()[:2]]) for name in ("weights", "members")
        }
        for mine, expected in zip(
            gradient(x, timesteps, condition), steering.gradient(x, timesteps, condition), strict=True
        ):
            assert torch.equal(mine, expected)
    assert all(graph is not None for graph in gradient._graphs.values())


def test_deep_blocks_are_kept_and_left_out_in_graphs_too(fashion: Watched) -> None:
    def kept_and_reused(forward: Callable[..., Tensor], batch: Batch, later: Batch) -> list[Tensor]:
        with keeping() as kept:
            whole = forward(*batch)
        with reusing([tuple(tensor[row] for tensor in kept) for row in range(2)], 2):
            return [whole, *kept, forward(*later)]

    batches = [fashion.probes.batch(2) for _ in range(2)]
    for _ in range(2):
        kept_and_reused(fashion.denoiser.forward, *batches)
    fashion.runs = 0
    found = kept_and_reused(fashion.denoiser.forward, *reversed(batches))
    assert fashion.runs == 0
    for mine, expected in zip(found, kept_and_reused(fashion.plainly, *reversed(batches)), strict=True):
        assert torch.equal(mine, expected)
    assert not torch.equal(found[-1], fashion.plainly(*batches[0])), "other deep blocks than its own"


def test_rows_with_something_of_their_own_and_what_is_counted_run_without_a_graph(fashion: Watched) -> None:
    fashion.record(1)
    batch = fashion.probes.batch(1)
    with given([RowExtras()]):
        fashion.denoiser.forward(*batch)
    assert fashion.runs == 1
    assert flop_of(lambda: fashion.denoiser.forward(*batch)) > 0
    assert fashion.runs == 2


class Branching(nn.Module):
    """Computes something else for small numbers."""

    def forward(self, x: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        return x + 1 if timesteps.max() > 500 else x


def test_a_network_that_a_graph_can_not_hold_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    network = Branching()
    recorded = Graphs(network.forward)
    x = torch.zeros(1, 1)
    for timestep in (900.0, 900.0, 100.0, 900.0):
        assert recorded(x, torch.tensor([timestep]), {}).item() == (timestep > 500)
    assert caplog.text.count("without graphs") == 1


def test_the_graph_that_was_not_used_for_longest_is_forgotten(
    fashion: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MOST", 2)
    for size in (5, 6, 7):
        fashion.record(size)
    for size, runs in ((7, 0), (6, 0), (5, 1)):
        fashion.runs = 0
        fashion.denoiser.forward(*fashion.probes.batch(size))
        assert fashion.runs == runs


def test_nothing_is_recorded_while_the_first_pass_is_under_way() -> None:
    """Its layers may not have packed their weights yet."""
    entered, go_on, runs = threading.Event(), threading.Event(), list[bool]()

    class Slow(nn.Module):
        def forward(self, x: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
            runs.append(_get_current_dispatch_mode() is not None)
            entered.set()
            assert go_on.wait(60)
            return x + timesteps

    network = Slow()
    passes = Graphs(network.forward)
    inputs = torch.zeros(1, 1), torch.ones(1), dict[str, Tensor]()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(passes, *inputs)
        assert entered.wait(60)
        second = pool.submit(passes, *inputs)
        wait_until(lambda: len(runs) == 2, what="the second pass is under way too")
        go_on.set()
        assert first.result(60).item() == second.result(60).item() == 1
    assert runs == [False, False]
    assert passes(*inputs).item() == 1
    assert runs[2]
