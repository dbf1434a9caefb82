"""A pack on the device: its networks and its unfinished samples."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from threading import Condition
from typing import Any

from models.adapters import AdapterFolders
from models.calibration import Calibration, Networks
from models.denoisers import Denoiser
from models.engine.errors import SampleFailed
from models.engine.observing import Tally
from models.engine.runner import Runner, Shape
from models.engine.sample import Sample, share_prefixes
from models.engine.schedule import Schedule
from models.lanes import ran_out_of_memory
from models.pack import InvalidPack, Pack
from models.samplers import FLOW_PREDICTION, NotLinear, check_schedule
from models.samplers.levels import alpha_bars

FEW_ROWS = 4  # per lane; two pictures with a classifier took 19 ms an evaluation in one tick, and 29 ms in two


class LoadedPack:
    """A pack, its runner and its unfinished samples.

    The methods take the engine's lock; `schedule`, `ticks` and `is_decoding` are used only while it is held.

    Attributes:
        pack: its folder.
        runner: its networks on the device.
        schedule: its unfinished samples.
        ticks: number of its ticks under way, decoding included.
        is_decoding: whether finished samples are being decoded.
        is_measured: whether measuring has ended.
    """

    def __init__(self, networks: Networks, runner: Runner, lock: Condition, *, is_measured: bool) -> None:
        self.pack: Pack = networks.pack
        self.networks = networks
        self.runner = runner
        self.schedule: Schedule[Sample] = Schedule(1, padded=runner.padded)
        self.ticks = 0
        self.is_decoding = False
        self.is_measured = is_measured
        self._lock = lock

    @classmethod
    def load(
        cls,
        networks: Networks,
        calibration: Calibration,
        siblings: Mapping[str, Runner],
        lock: Condition,
        *,
        is_measured: bool,
        adapters: AdapterFolders,
    ) -> LoadedPack:
        """Make networks ready to run.

        `siblings` are the runners of all packs of the engine, `adapters` is where LoRAs and ControlNets are.

        Raises:
            InvalidPack: the pack's noise schedule is not served, or the device has no memory for the smallest batch.
        """
        try:
            check_schedule(networks.pack.scheduler_config, networks.denoiser.prediction_type)
        except NotLinear as error:
            raise InvalidPack(f"{networks.pack.component('scheduler')}/scheduler_config.json: {error}") from error
        runner = Runner(
            networks.denoiser,
            networks.steering,
            calibration,
            networks.pack.scheduler_config,
            device=networks.device,
            siblings=siblings,
            adapters=adapters,
        )
        try:
            runner.warm_up()
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            rows = calibration.denoiser.sizes[0]
            raise InvalidPack(
                f"'{networks.pack.name}': {networks.device} has no memory for a batch of {rows} rows"
            ) from error
        loaded = cls(networks, runner, lock, is_measured=is_measured)
        loaded.tune(calibration)
        return loaded

    @property
    def name(self) -> str:
        return self.pack.name

    @property
    def denoiser(self) -> Denoiser:
        """Its denoiser, which defines its conditioning and picture size."""
        return self.runner.denoiser

    @property
    def tally(self) -> Tally:
        """What its ticks and networks have done."""
        return self.runner.tally

    @property
    def calibration(self) -> Calibration:
        """The pack's calibration on this device."""
        return self.runner.calibration

    @property
    def classifier_takes_prompt(self) -> bool:
        """Whether its classifier steers towards a prompt."""
        return self.runner.steering is not None and self.runner.steering.takes_prompt

    @property
    def last_alpha_bar(self) -> float:
        """ᾱ of its noisiest timestep: 0 if it starts from noise alone."""
        if self.denoiser.prediction_type == FLOW_PREDICTION:
            return 0.0
        return float(alpha_bars(self.pack.scheduler_config)[-1])

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """The scheduler's configuration for pictures of the pack's own size."""
        return self.runner.preparation.scheduling(self.denoiser.latent_shape)

    @property
    def lanes(self) -> int:
        return self.runner.lanes.count

    @property
    def lane_threads(self) -> int:
        """Threads per lane."""
        return self.runner.lanes.layout.threads

    @property
    def has_work(self) -> bool:
        """Whether it has samples to move, or to decode while it decodes no others: those wait and share a batch."""
        return self.schedule.has_idle or (self.schedule.next_done is not None and not self.is_decoding)

    @property
    def wants_tick(self) -> bool:
        """Whether it has work, and fewer ticks than lanes."""
        return self.ticks < self.lanes and self.has_work

    def is_guided_by(self, name: str) -> bool:
        """Whether one of its unfinished samples is guided by that pack. For holders of the lock."""
        return any(sample.course.spec.guidance.guide_pack == name for sample in self.schedule)

    def tune(self, calibration: Calibration, shape: Shape | None = None) -> None:
        """Apply a calibration for latents of `shape`, by default the own; none of the pack's ticks may be under way."""
        if shape not in (None, self.denoiser.latent_shape):
            with self._lock:
                self.runner.measured_shapes[shape] = calibration
            return
        runner, schedule, network = self.runner, self.schedule, calibration.denoiser
        lanes, knee_s = calibration.layout.lanes, network.row_seconds(network.knee)
        classifier, classifier_cost = calibration.classifier, 0.0
        if classifier is not None:
            are_comparable = classifier.is_measured and network.is_measured
            classifier_cost = classifier.row_seconds(network.knee) / knee_s if are_comparable else 1.0
        with self._lock:
            runner.calibration = calibration
            runner.max_batch = network.sizes[-1]
            for encoder in self.denoiser.encoders:
                encoder.batching = calibration.of(encoder.name)
            schedule.row_budget, schedule.least_rows, schedule.lanes = network.knee, network.least, lanes
            schedule.classifier_cost = classifier_cost
            schedule.few_rows = max(FEW_ROWS * lanes, network.sizes[0])
            if calibration.is_measured:
                schedule.tick_s = lanes * knee_s  # row_seconds assumes that every lane is busy

    def halve_batches(self, limit: int, shape: Shape) -> bool:
        """Shrink batches after running out of memory at `limit` rows of `shape`; `False` if they can't be smaller.

        The limit of the own shape is halved; rows of another run alone again.
        """
        if shape != self.denoiser.latent_shape:
            with self._lock:
                self.runner.measured_shapes.pop(shape, None)
            return limit > 1
        least = self.calibration.denoiser.sizes[0]
        if limit <= least:
            return False
        with self._lock:
            if self.runner.max_batch == limit:  # no other lane has halved it meanwhile
                self.runner.max_batch //= 2
                self.schedule.row_budget = max(least, self.schedule.row_budget // 2)
        return True

    def enqueue(self, samples: Collection[Sample]) -> None:
        """Queue samples for a tick; samples that share a prefix become forks of one of them."""
        with self._lock:
            for sample in share_prefixes(samples):
                self.schedule.enqueue(sample, now=time.monotonic())
            self._lock.notify()

    def take_done(self) -> list[Sample]:
        """Take some of the samples that are only to be decoded. For holders of the lock."""
        waiting = self.schedule.next_done
        if waiting is None:
            return []
        return self.schedule.take_done(self.lanes * self.runner.calibration_for(waiting.shape).decoder.knee)

    def remove(self, sample: Sample) -> None:
        """Remove a sample that has had its last tick."""
        with self._lock:
            self.schedule.remove(sample)

    def fork(self, trunk: Sample) -> None:
        """Queue the trunk's forks, which continue from its current state."""
        with self._lock:
            for sample in trunk.fork():
                self.schedule.enqueue(sample, now=time.monotonic())
            self._lock.notify()

    def fail(self, sample: Sample, error: SampleFailed) -> None:
        """Resolve a sample's handle with an error; its forks start from their first evaluation."""
        self.remove(sample)
        self.enqueue(sample.take_forks())
        sample.fail(error)
