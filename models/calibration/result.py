"""How a pack runs on a device, and how its rows are batched accordingly."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from pydantic import TypeAdapter
from scipy.optimize import isotonic_regression

from models.calibration.packing import quickest
from models.lanes import Layout
from models.pack import Pack
from models.precision import FLOAT32, Precision

KNEE = 1.05  # the row budget is the smallest batch within 5 % of the best time per row, to keep ticks short
LEAST = 1.5  # rows of a smaller batch than the smallest within 50 % of it would waste the device's time
HOST_MS = 1.0  # about what a tick takes of its lane besides its networks (`python -m benchmarks.anatomy`)
DEPENDS = "on the neighbours"


@dataclass(frozen=True, kw_only=True)
class BatchSize:
    """One measured batch size.

    Attributes:
        rows: the size.
        row_ms: milliseconds of the device's time per row, while every lane runs a batch of this size.
        bits: sizes with the same text give rows the same bits, except for `DEPENDS`.
    """

    rows: int
    row_ms: float
    bits: str


@dataclass(frozen=True, kw_only=True)
class NetworkCalibration:
    """How one network runs.

    Attributes:
        precision: its number format, by rule.
        reference: rows of the reference batch, by rule; a batch size is used only if it reproduces its bits.
        measured: all measured sizes, ascending; empty before anything is measured.
        lanes: batches that ran at once while it was measured.
        row_flop: floating-point operations per row, as torch counts them; 0 if not counted.
        row_bytes: most memory that its tensors take per row, without weights (`peak_of`); 0 if not counted.
        reused_share: of a row's FLOP, what is left when deep blocks are left out (`models.caching`); 1 if not counted.
        kept_bytes: memory of what they found for one row; 0 if not counted.
    """

    precision: Precision = FLOAT32
    reference: int = 1
    measured: tuple[BatchSize, ...] = ()
    lanes: int = 1
    row_flop: int = 0
    row_bytes: int = 0
    reused_share: float = 1.0
    kept_bytes: int = 0

    @property
    def is_measured(self) -> bool:
        return bool(self.measured)

    @property
    def is_bitwise(self) -> bool:
        """Whether a row's bits are known not to depend on its neighbours: compared, or because it has none."""
        bits = self._reference_bits
        return bits != DEPENDS and (self.reference == 1 or bool(bits))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Usable batch sizes in rows, ascending: every batch is padded to one of them."""
        return tuple(size.rows for size in self._usable)

    @property
    def knee(self) -> int:
        """Rows of the batch at the knee: larger ones lengthen every tick and gain next to nothing."""
        return self._smallest_within(KNEE)

    @property
    def least(self) -> int:
        """Rows of the smallest batch that still uses the device well."""
        return self._smallest_within(LEAST)

    def padded(self, rows: int) -> int:
        """The usable size in which a batch of `rows` finishes soonest; not always the smallest that holds it.

        Kernels for few rows can take longer in total than those for more: 6 rows in bfloat16 took longer than 8.
        """
        return self._holding(rows).rows

    def alone(self, row_cost: float = 1.0) -> NetworkCalibration:
        """Every row in a batch of its own: for rows of another shape than the measured ones.

        `row_cost` is that of such a row, relative to one of the measured shape.
        """
        smallest = self._usable[0]
        one = BatchSize(rows=1, row_ms=row_cost * smallest.rows * smallest.row_ms, bits="")
        measured = (one,) if self.measured else ()
        return replace(self, reference=1, measured=measured, row_flop=round(row_cost * self.row_flop))

    @cached_property
    def reusing(self) -> NetworkCalibration:
        """Of rows whose deep blocks are left out: the same batches, as all layers that run were measured in them."""
        measured = [replace(size, row_ms=self.reused_share * size.row_ms) for size in self.measured]
        return replace(self, measured=tuple(measured), row_flop=round(self.reused_share * self.row_flop))

    def row_seconds(self, rows: int) -> float:
        """Estimated seconds for a batch of `rows`, padding included."""
        holding = self._holding(rows)
        return max(rows, holding.rows) * holding.row_ms / 1000

    def batches(self, rows: int, *, lanes: int, limit: int) -> list[int]:
        """Split `rows` evenly among `lanes` lanes, and each share into the batches of at most `limit` that end soonest.

        Returns the batches' rows, largest first.
        """
        sizes = tuple(
            (size.rows, size.rows * size.row_ms + self._host_ms)
            for size in self._usable
            if size.rows <= max(limit, self.sizes[0])
        )
        shares = (rows // lanes + (number < rows % lanes) for number in range(min(lanes, rows)))
        return sorted(itertools.chain(*(quickest(share, sizes) for share in shares)), reverse=True)

    @property
    def _host_ms(self) -> float:
        """Of the device's time, what a batch takes besides the network, while the other lanes go on."""
        return HOST_MS / self.lanes

    @property
    def _reference_bits(self) -> str | None:
        return next((size.bits for size in self.measured if size.rows == self.reference), None)

    @cached_property
    def _usable(self) -> tuple[BatchSize, ...]:
        if not self.measured:
            return (BatchSize(rows=self.reference, row_ms=1.0, bits=""),)
        if not self.is_bitwise:
            return _smoothed(self.measured)
        return _smoothed([size for size in self.measured if size.bits == self._reference_bits])

    def _smallest_within(self, ratio: float) -> int:
        """Rows of the smallest batch whose time per row is within this ratio of the best."""
        row_ms = {size.rows: size.row_ms + self._host_ms / size.rows for size in self._usable}
        return min(rows for rows, ms in row_ms.items() if ms <= ratio * min(row_ms.values()))

    def _holding(self, rows: int) -> BatchSize:
        enough = [size for size in self._usable if size.rows >= rows] or self._usable[-1:]
        return min(enough, key=lambda size: size.rows * size.row_ms)


def _smoothed(sizes: Sequence[BatchSize]) -> tuple[BatchSize, ...]:
    """With times per row that don't rise with the size, the nearest to those measured: a rise is mostly noise.

    Isotonic regression. Otherwise rows would be split into the sizes that were measured in a lucky moment.
    """
    row_ms = isotonic_regression([size.row_ms for size in sizes], increasing=False).x
    return tuple(replace(size, row_ms=float(each)) for size, each in zip(sizes, row_ms, strict=True))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How a pack runs on a device.

    Attributes:
        layout: how the cores are split, by rule.
        denoiser, classifier: its networks.
        decoder: of its autoencoder, in which a row is a picture.
        encoders: its text encoders by name, in which a row is one reading of as many tokens as they read at once.
    """

    layout: Layout
    denoiser: NetworkCalibration
    classifier: NetworkCalibration | None = None
    decoder: NetworkCalibration = NetworkCalibration()
    encoders: Mapping[str, NetworkCalibration] = field(default_factory=dict)

    def of(self, network: str) -> NetworkCalibration:
        """That of one network, by its attribute's name or its name in `encoders`; alone if nothing is known."""
        known = {"denoiser": self.denoiser, "classifier": self.classifier, "decoder": self.decoder, **self.encoders}
        return known.get(network) or NetworkCalibration()

    def having(self, network: str, calibration: NetworkCalibration) -> Calibration:
        """With another calibration of one network, named as in `of`."""
        match network:
            case "denoiser":
                return replace(self, denoiser=calibration)
            case "classifier":
                return replace(self, classifier=calibration)
            case "decoder":
                return replace(self, decoder=calibration)
            case _:
                return replace(self, encoders={**self.encoders, network: calibration})

    @property
    def is_measured(self) -> bool:
        return self.denoiser.is_measured

    @property
    def is_reproducible(self) -> bool:
        """Whether the same request gives the same bytes, whatever other requests share its batches."""
        networks = (self.denoiser, self.classifier, self.decoder, *self.encoders.values())
        return all(network is None or network.is_bitwise for network in networks)

    @property
    def batch_bytes(self) -> int:
        """Memory that the largest batches take on all lanes at once, or their pictures' decoding; 0 if not counted."""
        if not self.denoiser.row_bytes:
            return 0
        networks = [self.denoiser, *([self.classifier] if self.classifier is not None else [])]
        largest = [network.row_bytes * network.sizes[-1] for network in networks]
        return self.layout.lanes * max(*largest, self.decoder.row_bytes * self.decoder.knee)

    def picture_bytes(self, size: float) -> int:
        """Memory that one picture of `size` times the pixels takes on every lane at once; 0 if not counted.

        In proportion to the pixels, as convolutions and memory-efficient attention need it.
        """
        return self.layout.lanes * round(size * max(self.denoiser.row_bytes, self.decoder.row_bytes))

    def to_json(self) -> bytes:
        return _JSON.dump_json(self)

    @classmethod
    def from_json(cls, text: bytes) -> Calibration:
        """Read what `to_json` wrote.

        Raises:
            pydantic.ValidationError: another version wrote it.
        """
        return _JSON.validate_json(text)


_JSON = TypeAdapter(Calibration)


def fixed_calibration(
    pack: Pack | None = None, by_rule: Calibration | None = None, *, lanes: int = 1, rows: int = 4
) -> Calibration:
    """Batches of `rows` on lanes of one thread, otherwise as `by_rule`: for tests, and for weights in training."""
    denoiser = by_rule.denoiser if by_rule else NetworkCalibration()
    classifier = by_rule.classifier if by_rule else NetworkCalibration()
    return Calibration(
        layout=Layout(lanes=lanes, threads=1),
        denoiser=replace(denoiser, reference=rows),
        classifier=replace(classifier, reference=rows) if classifier is not None else None,
    )
