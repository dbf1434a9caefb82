"""What the engine needs of a network that steers by its gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from models.spec import SampleSpec


class Steering(Protocol):
    """A noise-aware network whose gradient pulls pictures towards what is asked.

    Attributes:
        takes_prompt: whether it is asked by the spec's prompt; else by its label or terms.
        score_name: what the score is: "probability" or "similarity".
    """

    takes_prompt: bool
    score_name: str

    def condition(self, spec: SampleSpec) -> Mapping[str, Tensor]:
        """What one row is asked, as tensors of sizes that no request changes. Called off the engine's threads.

        Raises:
            InvalidSpec: the spec asks nothing, or too much.
        """

    def gradient(self, x: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(gradient, score) for noised latents `x` (B,C,H,W) at `timesteps` (B,): shapes (B,C,H,W) and (B,).

        Rows do not mix: the gradient of the sum over rows is each row's own gradient.
        """

    def examples(self) -> Sequence[Mapping[str, Tensor]]:
        """Some conditions that differ, to measure with."""
