"""What ControlNets need of the model family that they steer."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from models.configs import Keys

Inputs = Mapping[str, Tensor]
"""What a network is called with, by the names of diffusers' arguments and with the batch axis first."""
MakeInputs = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Inputs]
"""From x (B,C,H,W), timesteps (B,) and conditioning to what denoiser and ControlNet are both called with."""
Encode = Callable[[Tensor], Tensor]
"""From pictures (B,3,height,width) in [-1, 1] to the latents (B,C,H,W) of the pack's autoencoder."""
Residuals = Sequence[Tensor | None]
"""One for each place of the denoiser where a ControlNet may add something; `None` where it adds nothing."""
CONDITION = "controlnet_cond"
"""The name of what is made of a picture."""


class Added:
    """Rows' residuals as a summand of a batch's tensor, which leaves the bits of all other rows as they are.

    Args:
        rows: by row, its residuals (…), each with its scale.
    """

    def __init__(self, rows: Mapping[int, Sequence[tuple[Tensor, float]]]) -> None:
        self._rows = rows

    def __radd__(self, sample: Tensor) -> Tensor:
        if not self._rows:
            return sample
        changed = sample.clone()  # diffusers uses the tensor once more, as it is
        for row, residuals in self._rows.items():
            changed[row] += reduce(operator.add, (residual * scale for residual, scale in residuals))
        return changed


class ControlFamily(Protocol):
    """How ControlNets of one class are read, called, and act on one pack's denoiser.

    Attributes:
        network_class: diffusers' class of them.
        keys: what their config.json may hold.
        name: of the family that the pack belongs to.
        inputs: what the denoiser is called with.
    """

    network_class: ClassVar[type[Any]]
    keys: ClassVar[Keys]
    name: str
    inputs: MakeInputs

    @staticmethod
    def family_of(config: Mapping[str, Any]) -> str:
        """The family that a ControlNet is for whose configuration, with defaults, this is."""

    def difference(self, config: Mapping[str, Any]) -> str | None:
        """Why a ControlNet of the family does not fit the pack's denoiser; `None` if it does."""

    def complete(self, network: Any, device: torch.device) -> None:
        """Give a ControlNet that was just loaded for `device` what it has of the denoiser."""

    def condition(self, network: Any, picture: Tensor, conditional: Mapping[str, Tensor], encode: Encode) -> Inputs:
        """What a row has for a ControlNet that other rows have not, without the batch axis; it replaces its `inputs`.

        Args:
            network: the ControlNet.
            picture: (3,height,width) in 0..1, of the size that is drawn.
            conditional: conditioning of the conditional row.
            encode: the pack's autoencoder.
        """

    def probe(self, network: Any, x: Tensor) -> Inputs:
        """Conditions of the shapes of `condition`, with the batch axis, made of any x (B,C,H,W), to measure with."""

    def run(self, network: Any, inputs: Inputs) -> Residuals:
        """What a ControlNet adds to rows with these inputs, (B,…) each."""

    def arguments(self, added: Sequence[Added]) -> dict[str, Any]:
        """The arguments of the denoiser's call that add something at each place."""


def first_difference(
    config: Mapping[str, Any], denoiser: Mapping[str, Any], keys: Sequence[str], of: str
) -> str | None:
    """The first of the keys of which a ControlNet has another value than the denoiser, which is called `of`."""
    for key in keys:
        own, other = (list(value) if isinstance(value, tuple) else value for value in (config[key], denoiser[key]))
        if own != other:
            return f"its {key} is {own}, and that of the model's {of} {other}"
    return None


def factor_difference(read: int, factor: int) -> str | None:
    """Why a ControlNet that reads so many pixels to the side of a latent does not fit latents of `factor` pixels."""
    return None if read == factor else f"it reads pictures of {read} pixels to a latent, and the model's have {factor}"
