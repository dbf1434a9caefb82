"""What a tick costs: times of batches as they were measured or on straight lines between them, and padding."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from benchmarks.stream import Asked
from models.calibration import Calibration
from models.calibration.probes import CPU_SIZES
from models.calibration.result import BatchSize, NetworkCalibration


@dataclass(frozen=True)
class Curve:
    """Milliseconds of a network's batches, with a batch on every lane: (rows, ms), ascending."""

    points: Sequence[tuple[int, float]]

    def __call__(self, rows: int) -> float:
        if not rows:
            return 0.0
        sizes = [size for size, _ in self.points]
        above = bisect_left(sizes, rows)
        if above == len(sizes):
            return self.points[-1][1] * rows / sizes[-1]
        size, ms = self.points[above]
        if size == rows or not above:
            return ms
        smaller, less = self.points[above - 1]
        return less + (ms - less) * (rows - smaller) / (size - smaller)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Of one pack on one machine.

    Attributes:
        denoiser, classifier: of their batches.
        tick_ms: of a tick of Cynosure's besides its networks.
        step_ms: of a peer's step besides its networks.
        request_ms: from the request to its first evaluation, and from the last to the pictures.
        lanes: batches that run at once, each on a core.
        sizes: to which Cynosure's batches are padded, ascending.
    """

    denoiser: Curve
    classifier: Curve
    tick_ms: float = 1.2
    step_ms: float = 1.0
    request_ms: float = 8.0
    lanes: int = 2
    sizes: Sequence[int] = CPU_SIZES

    @classmethod
    def of(cls, calibration: Calibration) -> Costs:
        """As measured on this machine.

        Raises:
            ValueError: the pack has no classifier.
        """
        if calibration.classifier is None:
            raise ValueError("the mixed stream needs a pack with a classifier")
        lanes = calibration.layout.lanes
        denoiser, classifier = (
            Curve([(size.rows, lanes * size.rows * size.row_ms) for size in network.measured])
            for network in (calibration.denoiser, calibration.classifier)
        )
        return cls(denoiser=denoiser, classifier=classifier, lanes=lanes, sizes=calibration.denoiser.sizes)

    @cached_property
    def batching(self) -> NetworkCalibration:
        """How Cynosure batches the denoiser's rows."""
        return self._batching(self.denoiser)

    @cached_property
    def classifier_batching(self) -> NetworkCalibration:
        """How Cynosure batches the classifier's rows."""
        return self._batching(self.classifier)

    def _batching(self, network: Curve) -> NetworkCalibration:
        sizes = [BatchSize(rows=rows, row_ms=network(rows) / rows / self.lanes, bits="same") for rows in self.sizes]
        return NetworkCalibration(reference=self.sizes[0], measured=tuple(sizes), lanes=self.lanes)

    def requests_per_s(self, stream: Iterable[Asked]) -> float:
        """Of these requests, if the networks ran in their best batches on every lane, and nothing else took time."""
        denoiser_ms, classifier_ms = (
            min(network(rows) / rows for rows in self.sizes) / self.lanes
            for network in (self.denoiser, self.classifier)
        )
        each_ms = [asked.denoiser_rows * denoiser_ms + asked.classifier_rows * classifier_ms for asked in stream]
        return 1000 * len(each_ms) / sum(each_ms)

    def tick_s(self, rows: int, classifier_rows: int, *, alone: bool) -> float:
        """Seconds of a tick of Cynosure's; `alone` over all lanes, else in one."""
        denoiser = self._denoiser_ms(rows)
        classifier = self._ms(self.classifier, self.classifier_batching, classifier_rows)
        if alone and rows > 1:
            halves = self._denoiser_ms(math.ceil(rows / self.lanes))
            denoiser, classifier = max(halves, classifier), max(0.0, classifier - halves)
        elif alone:
            denoiser, classifier = max(denoiser, classifier), 0.0
        return (denoiser + classifier + self.tick_ms) / 1000

    def _denoiser_ms(self, rows: int) -> float:
        return self._ms(self.denoiser, self.batching, rows)

    def _ms(self, network: Curve, batching: NetworkCalibration, rows: int) -> float:
        """Of these rows' batches in one lane."""
        batches = batching.batches(rows, lanes=1, limit=self.sizes[-1])
        return sum(network(batching.padded(batch)) for batch in batches)


MEASURED = {
    "A": Costs(
        denoiser=Curve([(1, 4.0), (2, 6.5), (8, 19.0), (16, 35.3), (24, 51.6), (48, 103.0)]),
        classifier=Curve([(1, 3.0), (2, 4.6), (8, 13.0), (16, 24.0), (48, 70.0)]),
    ),
    "C": Costs(
        denoiser=Curve(
            [(1, 26.9), (2, 32.4), (3, 43.4), (4, 55.6), (6, 79.0), (8, 103.0), (12, 150.0), (16, 194.0), (24, 271.0)]
        ),
        classifier=Curve([(1, 12.8), (2, 18.5), (4, 24.1), (8, 52.7), (16, 92.2), (24, 131.0)]),
    ),
}
"""`fashion` on machines of docs/performance.md: in bfloat16 by `python -m benchmarks.layers --bfloat16`, and in float32
by `cynosure calibrate fashion`."""
