"""What calibration found for a pack on a device, and what follows from it for a batch."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from models.engine.lanes import Layout
from models.loading import FLOAT32, Pack, Precision

KNEE = 1.05  # the row budget is the smallest batch within 5 % of the best time a row: a shorter tick for everyone
DEPENDS = "on the neighbours"


@dataclass(frozen=True, kw_only=True)
class BatchSize:
    """One measured batch size.

    Attributes:
        rows: the size.
        row_ms: milliseconds of the device's time a row takes in it: every lane runs such a batch.
        bits: sizes with the same text give the same bits, but for `DEPENDS`.
    """

    rows: int
    row_ms: float
    bits: str


@dataclass(frozen=True, kw_only=True)
class NetworkCalibration:
    """What was found for one network.

    Attributes:
        precision: the number format it runs in.
        tried: milliseconds a row in a batch of 16, by precision.
        measured: every size that was tried.
        sizes: the sizes of the best class, ascending: batches are padded to one of them.
        is_bitwise: whether `sizes` is a class; where the device has none it is all sizes.
        row_flop: floating-point operations of a row, by torch's own count; 0 where it wasn't counted.
    """

    precision: Precision
    tried: dict[str, float]
    measured: tuple[BatchSize, ...]
    sizes: tuple[int, ...]
    is_bitwise: bool
    row_flop: int = 0

    @property
    def knee(self) -> int:
        """Rows of a batch at the knee: more of them cost everyone time and bring next to nothing."""
        usable = [size for size in self.measured if size.rows in self.sizes]
        best = min(size.row_ms for size in usable)
        return min(size.rows for size in usable if size.row_ms <= KNEE * best)

    def padded(self, rows: int) -> int:
        """The size, of those in use, that a batch of `rows` is done soonest in; not always the smallest that holds it.

        Kernels for few rows can be slower altogether than those for more: 6 rows in bfloat16 took longer than 8.
        """
        return self._holding(rows).rows

    def row_seconds(self, rows: int) -> float:
        """Estimated time of a batch of `rows`, padding included."""
        holding = self._holding(rows)
        return max(rows, holding.rows) * holding.row_ms / 1000

    def _holding(self, rows: int) -> BatchSize:
        usable = [size for size in self.measured if size.rows in self.sizes]
        enough = [size for size in usable if size.rows >= rows] or usable[-1:]
        return min(enough, key=lambda size: size.rows * size.row_ms)

    def batches(self, rows: int, *, lanes: int, limit: int) -> list[int]:
        """How many of `rows` go into each batch, at most `limit`, so that `lanes` are done with them soonest."""
        largest = max([size for size in self.sizes if size <= limit], default=self.sizes[0])
        fewest = math.ceil(rows / largest)

        def seconds(count: int) -> float:
            return math.ceil(count / lanes) * self.row_seconds(math.ceil(rows / count))

        count = min(range(fewest, min(fewest + lanes, rows + 1)), key=seconds)
        return [rows // count + (number < rows % count) for number in range(count)]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was found for a pack on a device.

    Attributes:
        key: what it depends on, as `calibration_key` has it.
        device: the hardware, in words.
        layout: how the cores are dealt out.
        layouts: milliseconds a denoiser row in batches of 16, by layout.
    """

    key: str
    device: str
    layout: Layout
    layouts: dict[str, float]
    denoiser: NetworkCalibration
    classifier: NetworkCalibration | None

    @property
    def is_reproducible(self) -> bool:
        return self.denoiser.is_bitwise and (self.classifier is None or self.classifier.is_bitwise)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        fields: dict[str, Any] = json.loads(text)

        def network(found: dict[str, Any] | None) -> NetworkCalibration | None:
            if found is None:
                return None
            measured = tuple(BatchSize(**size) for size in found["measured"])
            precision = Precision(**found["precision"])
            return NetworkCalibration(
                **found | {"precision": precision, "measured": measured, "sizes": tuple(found["sizes"])}
            )

        denoiser = network(fields["denoiser"])
        assert denoiser is not None
        classifier, layout = network(fields["classifier"]), Layout(**fields["layout"])
        return cls(**fields | {"layout": layout, "denoiser": denoiser, "classifier": classifier})


def fixed_calibration(pack: Pack | None = None, device: torch.device | None = None) -> Calibration:
    """Nothing measured: float32 in batches of 4 rows. For networks that take longer to measure than to draw with."""
    network = NetworkCalibration(
        precision=FLOAT32,
        tried={},
        measured=(BatchSize(rows=4, row_ms=1.0, bits=""),),
        sizes=(4,),
        is_bitwise=True,
    )
    layout = Layout(lanes=1, threads=1)
    return Calibration(key="", device="", layout=layout, layouts={}, denoiser=network, classifier=network)
