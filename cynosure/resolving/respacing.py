"""ADM's timestep strings, as far as a gateway has to read them: how many timesteps they choose.

`models.samplers.respaced` chooses the timesteps themselves; a test holds the two to each other.
"""

from __future__ import annotations

from cynosure.errors import InvalidRequest

FAST27 = "10,10,3,2,2"
"""GLIDE's `fast27`, by sections."""


def respaced_steps(text: str, total: int) -> int:
    """How many timesteps the string chooses out of `total`.

    "250" is one section, "10,15,20" three equal ones with so many timesteps each; "ddim25" is a whole stride.

    Raises:
        InvalidRequest: there are no such timesteps.
    """
    if text.startswith("ddim"):
        count = int(text.removeprefix("ddim"))
        possible = {len(range(0, total, stride)) for stride in range(1, total)}
        if count not in possible:
            nearest = min(sorted(possible), key=lambda one: abs(one - count))
            raise InvalidRequest(
                f"No whole stride gives {count} of {total} timesteps; the nearest is ddim{nearest}.",
                field="timestep_respacing",
            )
        return count
    counts = [int(part) for part in (FAST27 if text == "fast27" else text).split(",")]
    for section, count in enumerate(counts):
        size = total // len(counts) + (section < total % len(counts))  # the first ones get what is left over
        if not 1 <= count <= size:
            raise InvalidRequest(
                f"Section {section + 1} of {len(counts)} chooses 1 to {size} of its timesteps, not {count}.",
                field="timestep_respacing",
            )
    return sum(counts)
