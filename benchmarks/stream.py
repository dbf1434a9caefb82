"""The stream of requests that every contender is given: the same, in the same order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

STEPS = {4: 3, 8: 2, 20: 3, 50: 1, 100: 1}
PICTURES = {1: 8, 2: 4, 4: 2, 8: 1}  # twice as many pictures, half as often
SAMPLERS = ("ddim", "ddpm", "euler", "dpmpp_2m")
CLASSIFIER_SAMPLERS = ("ddim", "ddpm")  # the peers' plain loop knows σ²/α at integer timesteps alone
SCALES = {"none": (None,), "classifier_free": (2.0, 3.0, 5.0), "classifier": (2.0, 5.0, 10.0)}
MODES = {"none": 1, "classifier_free": 2, "classifier": 1}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request, in nobody's format."""

    mode: str
    scale: float | None
    label: int
    sampler: str
    steps: int
    count: int
    seed: int

    @property
    def denoiser_rows(self) -> int:
        return self.count * self.steps * (2 if self.mode == "classifier_free" else 1)

    @property
    def classifier_rows(self) -> int:
        return self.count * self.steps if self.mode == "classifier" else 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def mixed_stream(*, seed: int) -> Iterator[Asked]:
    """Requests without end, of mixed modes, samplers, 4 to 100 steps and 1 to 8 pictures."""
    dice = random.Random(seed)

    def draw(weights: dict[Any, int]) -> Any:
        return dice.choices(list(weights), list(weights.values()))[0]

    for number in itertools.count():
        mode = draw(MODES)
        yield Asked(
            mode=mode,
            scale=dice.choice(SCALES[mode]),
            label=dice.randrange(10),
            sampler=dice.choice(CLASSIFIER_SAMPLERS if mode == "classifier" else SAMPLERS),
            steps=draw(STEPS),
            count=draw(PICTURES),
            seed=seed * 100_000 + number,
        )
