"""What single rows of a batch are given besides their conditioning."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from models.adapters.controls import RowControl

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of a picture's tokens in one attention, (heads,tokens,width per head) each."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change of a layer's weights as a product of two small matrices (Hu et al. 2021): (1 + gain)·W + up·down.

    Attributes:
        down: a linear layer from `in` to r, or a convolution from `in` to r channels, without bias.
        up: (out,r), with the scale in it.
        gain: (out,), for weights whose lengths are changed, too, as in DoRA (Liu et al. 2024).
    """

    down: nn.Module
    up: Tensor
    gain: Tensor | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class RowImage:
    """A picture that prompts one row.

    Attributes:
        scale: what is found in it is multiplied by.
        seen: its keys and values, by the layers that read what attentions found.
        blank: those that an unconditional row looks at instead.
    """

    scale: float
    seen: Mapping[nn.Module, KeyValue]
    blank: Mapping[nn.Module, KeyValue]


@dataclass(frozen=True, eq=False, kw_only=True)
class RowExtras:
    """What one row has for itself, where its neighbours in the batch may have something else or nothing.

    Attributes:
        adapters: changes of layers.
        controls: ControlNets with the pictures that they steer by.
        images: pictures that prompt it.
    """

    adapters: Mapping[nn.Module, LowRank] = field(default_factory=dict)
    controls: Sequence[RowControl] = ()
    images: Sequence[RowImage] = ()

    @property
    def unconditional(self) -> RowExtras:
        """What the unconditional row has beside this one."""
        blanked = tuple(replace(image, seen=image.blank) for image in self.images)
        return replace(self, images=blanked) if blanked else self

    @property
    def parameters(self) -> int:
        """Numbers in the products, in keys and values, and in the ControlNets by their share of the evaluations.

        As each is used once wherever a layer's weights are, it is a measure of their cost.
        """
        products = sum(
            pair.up.numel() + sum(each.numel() for each in pair.down.parameters()) for pair in self.adapters.values()
        )
        images = sum(each.numel() for image in self.images for pair in image.seen.values() for each in pair)
        shares = ((each.network.num_parameters, each.control.end - each.control.start) for each in self.controls)
        return products + images + round(sum(parameters * share for parameters, share in shares))

    def during(self, position: int, evaluations: int) -> RowExtras | None:
        """What is left of it for the evaluation at `position` of so many; `None` if that is nothing."""
        steering = tuple(each for each in self.controls if each.control.steers(position, evaluations))
        if len(steering) == len(self.controls):
            return self
        return replace(self, controls=steering) if self.adapters or steering or self.images else None


class _Batch(threading.local):
    """The batch that this thread evaluates: what its rows are given, `None` for those that are given nothing."""

    rows: Sequence[RowExtras | None] = ()


_batch = _Batch()


@contextmanager
def given(rows: Sequence[RowExtras | None]) -> Iterator[None]:
    """Give the rows of the batch that is evaluated inside, on this thread, what they have for themselves.

    Rows beyond these, which pad the batch, are given nothing.
    """
    before, _batch.rows = _batch.rows, rows if any(rows) else ()
    try:
        yield
    finally:
        _batch.rows = before


def rows_in_batch() -> Sequence[RowExtras | None]:
    """What the rows of the batch that this thread evaluates are given; empty if none of them is given anything."""
    return _batch.rows


def controls_in_batch() -> list[Sequence[RowControl]]:
    """The controls of each of these rows."""
    return [() if row is None else row.controls for row in _batch.rows]
