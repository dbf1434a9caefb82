"""ControlNets as parts of a denoiser's evaluation: what they add to its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.adapters.controls.family import Added, ControlFamily, Inputs, Residuals
from models.batching import Alone, Batching, batch_calls
from models.lanes import first_call
from models.spec import Control

Shapes = tuple[torch.Size, ...]


class ControlNetwork:
    """A ControlNet on the device.

    Attributes:
        name: of its folder.
        family: how it is called.
        network: of the family's class.
        num_parameters: of the network.
        batching: how many rows may share a batch if their inputs have the `measured` shapes; others run alone.
        measured: shapes of a row's inputs; empty until they are measured.
    """

    def __init__(self, name: str, family: ControlFamily, network: Any) -> None:
        self.name = name
        self.family = family
        self.network = network
        self.num_parameters = sum(parameter.numel() for parameter in network.parameters())
        self.batching: Batching = Alone()
        self.measured: Shapes = ()
        self._joined: Shapes = ()
        self._called: set[tuple[object, ...]] = set()

    def __call__(self, inputs: Inputs) -> list[Residuals]:
        """The residuals of rows with these inputs and conditions; a row's bits do not depend on the others."""
        batching = self.batching if _shapes_of(inputs) == self.measured else Alone()
        rows = torch.arange(len(next(iter(inputs.values()))))
        calls = batch_calls(partial(self._first, inputs), rows, batching)
        return [
            [None if residual is None else residual[row] for residual in batch]
            for count, call in calls
            for batch in [call()]
            for row in range(count)
        ]

    def use(self, batching: Batching) -> None:
        """Batch rows by what was measured, with inputs of the shapes that `joined` was called with last."""
        self.batching, self.measured = batching, self._joined

    @torch.inference_mode()
    def joined(self, x: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> tuple[Tensor]:
        """The residuals of rows in one batch, all in one float32 tensor (B,…): to compare and time batches by.

        They are those for what the denoiser is called with, and any pictures. Called while no tick is under way, so
        that it may make kernels.
        """
        inputs = {**self.family.inputs(x, timesteps, conditioning), **self.family.probe(self.network, x)}
        self._joined = _shapes_of(inputs)
        made = dict.fromkeys(self._run(inputs, torch.arange(len(x))))  # some may be for several places
        return (torch.cat([residual.flatten(1).float() for residual in made if residual is not None], dim=1),)

    def _first(self, inputs: Inputs, rows: Tensor) -> Residuals:
        with first_call(self._called, (len(rows), *_shapes_of(inputs))):
            return self._run(inputs, rows)

    def _run(self, inputs: Inputs, rows: Tensor) -> Residuals:
        return self.family.run(self.network, {name: tensor[rows].contiguous() for name, tensor in inputs.items()})


def _shapes_of(inputs: Inputs) -> Shapes:
    """Those of a row."""
    return tuple(tensor.shape[1:] for tensor in inputs.values())


@dataclass(frozen=True, eq=False, kw_only=True)
class RowControl:
    """What steers one row.

    Attributes:
        control: what was asked for: how much, and when.
        network: the ControlNet.
        condition: what it is called with for this row alone, without the batch axis.
    """

    control: Control
    network: ControlNetwork
    condition: Inputs


def residuals(family: ControlFamily, controls: Sequence[Sequence[RowControl]], inputs: Inputs) -> dict[str, Any]:
    """The arguments of a denoiser's call by which the controls of a batch's rows act; none if no row has any."""
    asked = [(row, control) for row, own in enumerate(controls) for control in own]
    if not asked:
        return {}
    found: dict[tuple[int, RowControl], Residuals] = {}
    for network in dict.fromkeys(control.network for _, control in asked):
        pairs = [pair for pair in asked if pair[1].network is network]
        found |= zip(pairs, network(_inputs_of(pairs, inputs)), strict=True)
    return family.arguments([_added(asked, found, place) for place in range(len(found[asked[0]]))])


def _inputs_of(pairs: Sequence[tuple[int, RowControl]], inputs: Inputs) -> Inputs:
    """What a ControlNet is called with for these rows, each with its control."""
    rows, conditions = [row for row, _ in pairs], [control.condition for _, control in pairs]
    return {
        **{name: tensor[rows] for name, tensor in inputs.items()},
        **{name: torch.stack([condition[name] for condition in conditions]) for name in conditions[0]},
    }


def _added(
    asked: Sequence[tuple[int, RowControl]], found: Mapping[tuple[int, RowControl], Residuals], place: int
) -> Added:
    """What is added at one place, each row's in the order of its controls."""
    rows: dict[int, list[tuple[Tensor, float]]] = {}
    for row, control in asked:
        residual = found[row, control][place]
        if residual is not None:
            rows.setdefault(row, []).append((residual, control.control.scale))
    return Added(rows)
