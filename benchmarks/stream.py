"""The stream of requests: every contender gets the same requests in the same order.

It works for packs that draw from a label or a prompt, without an initial picture.
"""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from models.pack import Pack

STEPS = {4: 3, 8: 2, 20: 3, 50: 1, 100: 1}
PICTURES = {1: 8, 2: 4, 4: 2, 8: 1}  # requests for twice as many pictures are half as frequent
SAMPLERS = ("ddim", "ddpm", "euler", "dpmpp_2m")
CLASSIFIER_SAMPLERS = ("ddim", "ddpm")  # the peers' plain loop has σ²/α only at integer timesteps
SCALES = {"none": (None,), "classifier_free": (2.0, 3.0, 5.0), "classifier": (2.0, 5.0, 10.0)}
NUM_SUBJECTS = 10


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request, with a label or a prompt, independent of the contenders' formats."""

    mode: str
    scale: float | None
    label: int | None = None
    prompt: str | None = None
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

    def body(self) -> dict[str, Any]:
        """The body of `POST /generate`."""
        fields = {
            "class_label": self.label,
            "prompt": self.prompt,
            "guidance_mode": self.mode,
            "guidance_scale": self.scale,
            "sampler": self.sampler,
            "steps": self.steps,
            "num_images": self.count,
            "seed": self.seed,
            "use_cache": False,
        }
        return {name: value for name, value in fields.items() if value is not None}


def subject(pack: Pack, number: int) -> dict[str, Any]:
    """A request's subject: one of the pack's labels, or a prompt if it has no labels."""
    return (
        {"label": number % len(pack.labels)} if pack.labels else {"prompt": f"picture {string.ascii_lowercase[number]}"}
    )


def plain(pack: Pack, number: int, *, steps: int, count: int = 1) -> Asked:
    """A request without guidance."""
    about = subject(pack, number % NUM_SUBJECTS)
    return Asked(mode="none", scale=None, **about, sampler="ddim", steps=steps, count=count, seed=number)


def modes_of(pack: Pack) -> dict[str, int]:
    """Guidance modes that the pack supports, with their weights in the stream."""
    has_null = pack.family != "AdmUNet"
    return (
        {"none": 1} | ({"classifier_free": 2} if has_null else {}) | ({"classifier": 1} if pack.has_classifier else {})
    )


def mixed_stream(pack: Pack, *, seed: int) -> Iterator[Asked]:
    """Endless requests of mixed modes and samplers, with 4 to 100 steps and 1 to 8 pictures."""
    modes = modes_of(pack)
    dice = random.Random(seed)

    def draw(weights: dict[Any, int]) -> Any:
        return dice.choices(list(weights), list(weights.values()))[0]

    for number in itertools.count():
        mode = draw(modes)
        yield Asked(
            mode=mode,
            scale=dice.choice(SCALES[mode]),
            **subject(pack, dice.randrange(NUM_SUBJECTS)),
            sampler=dice.choice(CLASSIFIER_SAMPLERS if mode == "classifier" else SAMPLERS),
            steps=draw(STEPS),
            count=draw(PICTURES),
            seed=seed * 100_000 + number,
        )
