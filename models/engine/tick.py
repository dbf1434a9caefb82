"""A tick: moves some samples of one pack by one evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from models.engine.errors import SampleFailed, failure_of
from models.engine.loaded import LoadedPack
from models.engine.sample import Image, Sample
from models.lanes import CallRunner, Result, drop_traceback


class Tick:
    """Moves samples by one evaluation, and delivers the pictures that are done.

    One sample's error does not fail the others: a step that fails for the batch is tried again for each sample alone.

    Args:
        loaded: the pack.
        samples: the pack's samples to move.
        lanes: run the networks.
    """

    def __init__(self, loaded: LoadedPack, samples: Sequence[Sample], lanes: CallRunner) -> None:
        self._loaded = loaded
        self._runner = loaded.runner
        self._samples = samples
        self._lanes = lanes

    def run(self) -> None:
        """Move all samples.

        Raises:
            BaseException: an error that no sample caused, such as a lost device.
        """
        self._begin()
        begun = [sample for sample in self._samples if not sample.is_over]
        for samples, (data, are_finite) in self._attempted(begun, self._evaluated):
            self._settle(samples, data, are_finite)
        done = [sample for sample in begun if sample.is_done and not sample.is_over]
        for samples, pictures in self._attempted(done, self._drawn):
            self._deliver(samples, pictures)

    def _begin(self) -> None:
        for sample in self._samples:
            if sample.state is None:
                with self._failing_alone(sample):
                    self._runner.start(sample)

    def _evaluated(self, samples: Sequence[Sample]) -> tuple[Tensor, list[bool]]:
        """Evaluate the samples; when the device runs out of memory, retry in smaller batches and keep to those."""
        shape = samples[0].shape
        limit = self._runner.limit(shape)
        try:
            return self._runner.tick(samples, self._lanes)
        except torch.OutOfMemoryError as error:
            if not self._loaded.halve_batches(limit, shape):
                raise
            drop_traceback(error)
        return self._evaluated(samples)

    def _settle(self, samples: Sequence[Sample], data: Tensor, are_finite: Sequence[bool]) -> None:
        """Fork, fail or preview the samples that have moved; `data` holds each sample's current data prediction."""
        for row, sample in enumerate(samples):
            if sample.forks and sample.position == sample.course.fork_position:
                self._loaded.fork(sample)
            if not are_finite[row]:
                step = sample.position
                self._loaded.fail(sample, SampleFailed(f"the picture became NaN or infinite at step {step}"))
            elif sample.on_preview is not None and sample.wants_preview_now:
                with self._failing_alone(sample):
                    [picture] = self._runner.pictures([sample], data[row : row + 1], self._lanes)
                    sample.on_preview(sample.position, picture)

    def _drawn(self, samples: Sequence[Sample]) -> list[Image]:
        latents = torch.stack([sample.state[0] for sample in samples if sample.state is not None])
        return self._runner.pictures(samples, latents, self._lanes)

    def _deliver(self, samples: Sequence[Sample], pictures: Sequence[Image]) -> None:
        for sample, picture in zip(samples, pictures, strict=True):
            self._loaded.remove(sample)
            sample.finish(picture)

    def _attempted(
        self, samples: Sequence[Sample], attempt: Callable[[Sequence[Sample]], Result]
    ) -> Iterator[tuple[Sequence[Sample], Result]]:
        """Yield the result of `attempt` for all samples, or, after an error, for each alone; fail those that raise."""
        if not samples:
            return
        try:
            result = attempt(samples)
        except Exception as error:
            failure = failure_of(error)
        else:
            yield samples, result
            return
        if len(samples) == 1:
            self._loaded.fail(samples[0], failure)
        else:
            for sample in samples:
                yield from self._attempted([sample], attempt)

    @contextmanager
    def _failing_alone(self, sample: Sample) -> Iterator[None]:
        """Fail only `sample` on an error inside this context."""
        try:
            yield
        except Exception as error:
            self._loaded.fail(sample, failure_of(error))
