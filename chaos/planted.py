"""`python -m chaos.planted`: a worker with planted faults.

The job with seed CHAOS_POISON_SEED kills its process, as a crash in a kernel would. On a regular exit it writes to
CHAOS_LEFT_FILE how many samples are left in its engine.
"""

from __future__ import annotations

import os
import signal

from cynosure.contract import ModelCard, ResolvedRequest
from models.engine import Engine
from models.spec import SampleSpec
from workers import __main__ as program
from workers import host, serving
from workers.drawing.specs import specs_of

POISON_SEED = int(os.environ.get("CHAOS_POISON_SEED", "-1"))
LEFT_FILE = os.environ["CHAOS_LEFT_FILE"]


def _poisoned(job_id: str, request: ResolvedRequest, card: ModelCard) -> list[SampleSpec]:
    if request.seed == POISON_SEED:
        os.kill(os.getpid(), signal.SIGKILL)
    return specs_of(job_id, request, card)


class CountingEngine(Engine):
    """Records how many samples are left when it closes."""

    def close(self) -> None:
        samples = sum(len(loaded.schedule) for loaded in self.packs.values())
        with open(LEFT_FILE, "a") as file:
            file.write(f"{samples}\n")
        super().close()


if __name__ == "__main__":
    vars(host)["specs_of"] = _poisoned
    vars(serving)["Engine"] = CountingEngine
    program.command()
