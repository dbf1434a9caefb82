"""What a pack does in a turn: moves some of its samples by one evaluation, or decodes those that are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor

from models.engine.errors import SampleFailed, failure_of
from models.engine.loaded import LoadedPack
from models.engine.sample import Image, Sample
from models.lanes import CallRunner, Result, drop_traceback, ran_out_of_memory


class _Turn:
    """One sample's error does not fail the others: what fails for the batch is tried again for each sample alone.

    Args:
        loaded: the pack.
        samples: some of its samples.
    """

    def __init__(self, loaded: LoadedPack, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self._loaded = loaded
        self._runner = loaded.runner

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


class Tick(_Turn):
    """Moves samples by one evaluation."""

    def run(self, lanes: CallRunner) -> None:
        """Move all samples; `lanes` run the networks.

        Raises:
            BaseException: an error that no sample caused, such as a lost device.
        """
        self._begin()
        begun = [sample for sample in self.samples if not sample.is_over]
        for samples, (data, are_finite) in self._attempted(begun, partial(self._evaluated, lanes)):
            self._settle(samples, are_finite)
            self._preview(samples, data, lanes)

    def _begin(self) -> None:
        for sample in self.samples:
            if sample.place is None:
                with self._failing_alone(sample):
                    self._runner.start(sample)

    def _evaluated(self, lanes: CallRunner, samples: Sequence[Sample]) -> tuple[Tensor, list[bool]]:
        """Evaluate the samples; when the device runs out of memory, retry in smaller batches and keep to those."""
        shape = samples[0].shape
        limit = self._runner.limit(shape)
        try:
            return self._runner.tick(samples, lanes)
        except RuntimeError as error:
            if not ran_out_of_memory(error) or not self._loaded.halve_batches(limit, shape):
                raise
            drop_traceback(error)
        return self._evaluated(lanes, samples)

    def _settle(self, samples: Sequence[Sample], are_finite: Sequence[bool]) -> None:
        """Fork or fail the samples that have moved."""
        for sample, is_finite in zip(samples, are_finite, strict=True):
            if sample.forks and sample.position == sample.course.fork_position:
                self._loaded.fork(sample)
            if not is_finite:
                step = sample.position
                self._loaded.fail(sample, SampleFailed(f"the picture became NaN or infinite at step {step}"))

    def _preview(self, samples: Sequence[Sample], data: Tensor, lanes: CallRunner) -> None:
        """Show the samples' current data predictions `data` (R,C,H,W) to those who want to see them now."""
        rows = {sample: row for row, sample in enumerate(samples)}
        wanted = [sample for sample in samples if sample.wants_preview_now and not sample.is_over]

        def decoded(samples: Sequence[Sample]) -> list[Image]:
            return self._runner.pictures(samples, data[[rows[sample] for sample in samples]], lanes)

        for shown, pictures in self._attempted(wanted, decoded):
            for sample, picture in zip(shown, pictures, strict=True):
                with self._failing_alone(sample):
                    if sample.on_preview is not None:
                        sample.on_preview(sample.position, picture)


class Decoding(_Turn):
    """Delivers samples whose evaluations are done; their latents have one shape."""

    def run(self, lanes: CallRunner) -> None:
        """Decode all samples; `lanes` run the network.

        Raises:
            BaseException: an error that no sample caused, such as a lost device.
        """
        for samples, pictures in self._attempted(self.samples, partial(self._decoded, lanes)):
            for sample, picture in zip(samples, pictures, strict=True):
                self._loaded.remove(sample)
                sample.finish(picture)

    def _decoded(self, lanes: CallRunner, samples: Sequence[Sample]) -> list[Image]:
        return self._runner.pictures(samples, self._runner.latents(samples), lanes)
