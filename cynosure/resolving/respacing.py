"""ADM's timestep strings, as far as the gateway must read them: how many timesteps they choose.

`models.samplers.respaced` chooses the timesteps themselves; a test checks that the two agree.
"""

from __future__ import annotations

from cynosure.errors import InvalidRequest

FAST27 = "10,10,3,2,2"
"""The sections of GLIDE's `fast27`."""


def respaced_steps(text: str, total: int) -> int:
    """The number of timesteps that the string chooses out of `total`.

    "250" chooses 250 from one section, "10,15,20" that many from each of three equal ones; "ddim25" is a whole stride.

    Raises:
        InvalidRequest: the string asks for timesteps that don't exist.
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
        size = total // len(counts) + (section < total % len(counts))  # the first sections get the remainder
        if not 1 <= count <= size:
            raise InvalidRequest(
                f"Section {section + 1} of {len(counts)} must choose 1 to {size} timesteps, not {count}.",
                field="timestep_respacing",
            )
    return sum(counts)
