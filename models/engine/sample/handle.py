"""What a picture's submitter sees of it."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""A finished picture: (H, W, C)."""


@dataclass(eq=False)
class Promise:
    """A picture's state shared between engine and submitter: the engine writes it, a `Handle` reads it.

    It holds no tensor, so a caller that keeps its handle keeps no latent alive.
    """

    evaluations: int
    guided: range
    remarks: tuple[str, ...] = ()
    evaluations_done: int = 0
    evaluated_at: list[float] = field(default_factory=list)
    telemetry: list[dict[str, float]] = field(default_factory=list)
    is_cancelled: bool = False
    future: Future[Image] = field(default_factory=Future)


class Handle:
    """The future of one picture, as returned by `Engine.submit`."""

    def __init__(self, promise: Promise) -> None:
        self._promise = promise

    @property
    def future(self) -> Future[Image]:
        return self._promise.future

    def result(self, timeout: float | None = None) -> Image:
        """Wait for the picture.

        Raises:
            SampleFailed: or a subclass.
            TimeoutError: not done within `timeout` seconds.
        """
        return self.future.result(timeout)

    def cancel(self) -> None:
        """Abandon the picture; its rows become free when its current tick ends."""
        self._promise.is_cancelled = True

    @property
    def is_done(self) -> bool:
        return self.future.done()

    @property
    def evaluations_done(self) -> int:
        """Network evaluations so far."""
        return self._promise.evaluations_done

    @property
    def evaluations(self) -> int:
        """Total number of network evaluations."""
        return self._promise.evaluations

    @property
    def evaluated_at(self) -> list[float]:
        """When each evaluation so far was done, on `time.monotonic`."""
        return list(self._promise.evaluated_at)

    @property
    def guided(self) -> range:
        """The evaluations at which guidance is on."""
        return self._promise.guided

    @property
    def remarks(self) -> tuple[str, ...]:
        """What of the spec's prompts the networks do not read, in sentences."""
        return self._promise.remarks

    @property
    def telemetry(self) -> list[dict[str, float]]:
        """Effect of guidance in each evaluation so far, if the spec requests telemetry."""
        return list(self._promise.telemetry)
