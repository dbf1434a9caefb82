"""The interface between the engine and a network that steers by its gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from models.spec import SampleSpec


class Steering(Protocol):
    """A noise-aware network whose gradient pulls pictures towards a condition.

    Attributes:
        takes_prompt: whether the condition is the spec's prompt; otherwise it is its label or terms.
        score_name: meaning of the score: "probability" or "similarity".
        num_parameters: of the network.
    """

    takes_prompt: bool
    score_name: str
    num_parameters: int

    def condition(self, spec: SampleSpec) -> Mapping[str, Tensor]:
        """One row's condition, as tensors whose sizes are the same for all requests. Not called on threads that tick.

        Raises:
            InvalidSpec: the spec has no condition, or too many terms.
        """

    def remarks(self, spec: SampleSpec) -> tuple[str, ...]:
        """What of the spec's prompt the network does not read, in sentences. Called where `condition` is."""

    def gradient(self, x: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(gradient, score) for noised latents `x` (B,C,H,W) at `timesteps` (B,): shapes (B,C,H,W) and (B,).

        Rows are independent, so the gradient of the sum over rows holds each row's gradient.
        """

    def examples(self) -> Sequence[Mapping[str, Tensor]]:
        """Some distinct conditions, to measure with."""
