"""What the engine counts while it draws: plain numbers, to be read from other threads."""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

TICK_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
NETWORKS = ("denoiser", "classifier", "decoder")
LOAD_S = 30.0  # the time over which the load is averaged


@dataclass(frozen=True)
class Distribution:
    """How often values came up.

    Attributes:
        bounds: ascending.
        counts: values up to each bound and above the one before; one more for those above all bounds.
        total: the sum of all values.
    """

    bounds: Sequence[float]
    counts: Sequence[int]
    total: float


class _Counted:
    """A `Distribution` that grows."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def read(self) -> Distribution:
        return Distribution(self._bounds, tuple(self._counts), self._total)


class Tally:
    """Counts one pack's ticks and its networks' batches. A few additions a tick, under a lock that is hardly held."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ticks = _Counted(TICK_S)
        self._rows = {network: _Counted(ROWS) for network in NETWORKS}
        self._padding = 0

    def ticked(self, seconds: float) -> None:
        """A tick has moved its samples by one evaluation."""
        with self._lock:
            self._ticks.add(seconds)

    def evaluated(self, network: str, rows: int, padding: int) -> None:
        """A network, one of `NETWORKS`, has evaluated a batch of `rows`, and as many rows of padding."""
        with self._lock:
            self._rows[network].add(rows)
            self._padding += padding

    @property
    def ticks(self) -> Distribution:
        """Seconds that ticks took."""
        with self._lock:
            return self._ticks.read()

    @property
    def rows(self) -> Mapping[str, Distribution]:
        """Rows of batches, without padding, by network."""
        with self._lock:
            return {network: counted.read() for network, counted in self._rows.items()}

    @property
    def padding(self) -> int:
        """Rows that only filled batches up."""
        with self._lock:
            return self._padding


class Load:
    """The share of the cores in use, averaged over the last `LOAD_S` by a weight that fades exponentially.

    Args:
        cores: those that may be in use at once.
        clock: seconds that never run backwards.

    Attributes:
        in_use: those that are, now.
    """

    def __init__(self, cores: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.in_use = 0
        self._clock = clock
        self._cores = cores
        self._state = (0.0, 0.0, clock())  # the average until then, the share since then; read as one

    def change(self, cores: int) -> None:
        """From now on so many cores more are in use, or fewer. For one thread at a time."""
        self.in_use += cores
        self._state = (self.ratio, self.in_use / self._cores, self._clock())

    @property
    def ratio(self) -> float:
        average, share, since = self._state
        kept = math.exp((since - self._clock()) / LOAD_S)
        return average * kept + share * (1 - kept)
