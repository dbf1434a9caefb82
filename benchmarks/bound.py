"""(b), the offline bound: the rate of the networks alone, and its share of the device's matrix-product peak."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from benchmarks.stream import Asked
from models.calibration import calibrated
from models.calibration.measure import in_turns
from models.calibration.probes import Batch, Network, example_conditionings, only, stacked
from models.calibration.result import NetworkCalibration
from models.classifiers import load_steering
from models.denoisers import Conditioning, load_denoiser
from models.flop import flop_of
from models.lanes import Lanes
from models.loading import with_float32_mode
from models.pack import Pack
from models.precision import Precision

OFFLINE_S = 6.0
BATCHES = 3  # sizes of which the quickest counts: which one that is changes with what else the machine does
SIDES = {"cpu": (512, 768, 1024), "cuda": (2048, 4096, 8192)}
PRODUCTS = {"cpu": 1, "cuda": 10}  # per synchronization with the device


@dataclass
class _Timed:
    """A network in batches of one size.

    Attributes:
        evaluate: runs such a batch.
        rows: its rows.
        row_flop: floating-point operations per row.
        row_s: seconds per row with every lane busy, one entry per measurement.
    """

    evaluate: Callable[[], Tensor]
    rows: int
    row_flop: int
    row_s: list[float] = field(default_factory=list)

    def call(self) -> None:
        self.evaluate().flatten()[0].item()  # waits for the device

    @property
    def latest_row_s(self) -> float:
        """Mean of the last two measurements."""
        latest = self.row_s[-2:]
        return sum(latest) / len(latest)


class OfflineBound:
    """Only the networks, in their best batches on every lane; measured again at every load.

    The networks are the denoiser, the classifier and an autoencoder's decoder, but not a prompt's encoder.

    Attributes:
        precision: the denoiser's.
        peak: FLOP/s of the device's matrix products in that number format, even if a contender uses another.
    """

    def __init__(self, pack: Pack, device: torch.device) -> None:
        calibration = calibrated(pack, device)
        self.precision = calibration.denoiser.precision
        self._lanes = Lanes(calibration.layout)
        self.peak = product_flop_per_s(self._lanes, device, self.precision)
        self._denoiser = load_denoiser(pack, device, self.precision)  # kept: its methods hold it weakly
        classifier = calibration.classifier
        self._steering = load_steering(pack, device, classifier.precision) if classifier else None

        def timed(network: Network, calibration: NetworkCalibration, conditioning: Conditioning) -> list[_Timed]:
            quickest = sorted(calibration.measured, key=lambda size: size.row_ms)[:BATCHES]
            found = []
            for rows in (size.rows for size in quickest):
                x = torch.randn(rows, *self._denoiser.latent_shape, device=device)
                batch = (x, x.new_full((rows,), 500.0), stacked([conditioning] * rows, device))
                found.append(_Timed(partial(_first_of, network, batch), rows, calibration.row_flop))
            return found

        conditioning = example_conditionings(self._denoiser, pack)[0]
        self._timed = {"denoiser": timed(only(self._denoiser.forward), calibration.denoiser, conditioning)}
        if self._steering is not None and classifier is not None:
            self._timed["classifier"] = timed(self._steering.gradient, classifier, self._steering.examples()[0])
        if pack.has("vae"):
            latent = torch.randn(1, *self._denoiser.latent_shape, device=device)
            decode = partial(self._denoiser.decode, latent)
            self._timed["decoder"] = [_Timed(decode, 1, flop_of(decode))]

    def measure(self) -> None:
        batches = [timed for sizes in self._timed.values() for timed in sizes]
        for timed in batches:
            calls = [timed.call] * self._lanes.count
            for _ in range(3):  # graphs are recorded meanwhile
                self._lanes.run(calls)
            rounds, started = 0, time.perf_counter()
            while time.perf_counter() - started < OFFLINE_S / len(batches):
                self._lanes.run(calls)
                rounds += 1
            timed.row_s.append((time.perf_counter() - started) / rounds / (timed.rows * len(calls)))
        torch.cuda.empty_cache()  # memory that torch caches would be missing for the contenders

    def seconds(self, parts: Iterable[tuple[Asked, float]]) -> float:
        """Time for the rows of these shares of requests, at the mean of the last two measurements."""
        return sum(rows * min(timed.latest_row_s for timed in sizes) for sizes, rows in self._rows(parts))

    def share_of_peak(self, parts: Iterable[tuple[Asked, float]], seconds: float) -> float:
        """FLOP of these shares of requests, relative to the device's peak FLOP in `seconds`."""
        return sum(rows * sizes[0].row_flop for sizes, rows in self._rows(parts)) / (seconds * self.peak)

    def _rows(self, parts: Iterable[tuple[Asked, float]]) -> list[tuple[list[_Timed], float]]:
        shares = list(parts)
        rows = {
            "denoiser": sum(share * asked.denoiser_rows for asked, share in shares),
            "classifier": sum(share * asked.classifier_rows for asked, share in shares),
            "decoder": sum(share * asked.count for asked, share in shares),
        }
        return [(sizes, rows[name]) for name, sizes in self._timed.items()]


def _first_of(network: Network, batch: Batch) -> Tensor:
    return network(*batch)[0]


class _Products:
    """Multiplies square matrices."""

    def __init__(self, side: int, device: torch.device, precision: Precision) -> None:
        self.square = torch.randn(side, side, device=device).to(getattr(torch, precision.dtype))
        self.count = PRODUCTS[device.type]
        with_float32_mode(self, device, multiply=precision)

    def multiply(self) -> None:
        for _ in range(self.count):
            product = self.square @ self.square
        product[0, 0].item()  # waits for the device


def product_flop_per_s(lanes: Lanes, device: torch.device, precision: Precision) -> float:
    """FLOP/s of products of square matrices of the fastest size, with every lane busy."""

    def seconds_a_flop(products: _Products) -> float:
        started = time.perf_counter()
        lanes.run([products.multiply] * lanes.count)
        flop = lanes.count * products.count * 2 * len(products.square) ** 3
        return (time.perf_counter() - started) / flop

    sides = {side: _Products(side, device, precision) for side in SIDES[device.type]}
    return 1 / min(in_turns({side: partial(seconds_a_flop, products) for side, products in sides.items()}).values())
