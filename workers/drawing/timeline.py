"""When a job's pictures were drawn and decoded, as spans of its trace."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from jobs import traces
from models.engine import Handle

EVERY = 10  # evaluations that get an event


@contextmanager
def traced(handles: Sequence[Handle]) -> Iterator[None]:
    """Add the spans `draw` and `decode` of pictures that were just submitted, and are waited for inside.

    The events are the evaluations of the picture that was evaluated last: the first, and every tenth.
    """
    began_at = time.monotonic()
    try:
        yield
    finally:
        ended_at = time.monotonic()
        last = max((handle.evaluated_at for handle in handles), key=lambda moments: moments[-1:], default=[])
        ticks = [(number, at) for number, at in enumerate(last, start=1) if number == 1 or number % EVERY == 0]
        is_evaluated = bool(last) and all(handle.evaluations_done == handle.evaluations for handle in handles)
        evaluated_at = last[-1] if is_evaluated else ended_at
        traces.add("draw", began_at, evaluated_at, ticks)
        if is_evaluated:
            traces.add("decode", evaluated_at, ended_at)
