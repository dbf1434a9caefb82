"""The engine's ways of encoding prompts and decoding latents, timed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median

import torch

from benchmarks.packs import LETTERS
from harness.processes import wait_until
from models.calibration import NetworkCalibration
from models.engine import Engine
from models.engine.sample import Sample
from models.lanes import Lanes, Layout
from models.spec import SampleSpec

JOBS = 8
TURNS = 25
BEFORE, AFTER = "one at a time", "in batches"


def prompts() -> Iterator[str]:
    """Prompts that were not encoded yet."""
    for letters in itertools.product(LETTERS, repeat=6):
        yield "a " + "".join(letters)


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


class Compared:
    """The engine's own ways of encoding and decoding, with the batches that were measured and without.

    Args:
        engine: has one pack, and is idle.
        spec: a picture of it.
    """

    def __init__(self, engine: Engine, spec: SampleSpec) -> None:
        self.loaded = engine.packs[spec.pack]
        self.runner = self.loaded.runner
        self.spec = spec
        self.new = prompts()
        self.aside = Lanes(Layout(lanes=1, threads=1))  # as the engine encodes
        [inputs] = self.aside.run([lambda: self.runner.preparation.prepare(spec)])
        self.course = self.runner.preparation.course(spec, inputs)
        own, size = self.loaded.denoiser.latent_shape, spec.size(self.loaded.denoiser.picture_size)
        if self.course.shape != own:
            engine.generate([replace(spec, steps=1)])
            wait_until(
                lambda: self.runner.calibration_for(self.course.shape).decoder.row_bytes > 0,
                seconds=600,
                what=f"{size} is measured",
            )
        self.measured = {shape: self.runner.calibration_for(shape) for shape in (own, self.course.shape)}
        self.latents = torch.randn(JOBS, *self.course.shape, device=self.runner.device)

    def turn(self, way: str) -> tuple[float, float, float]:
        """Seconds of encoding the prompts of all jobs, of decoding their latents, and of their evaluations."""
        for shape, measured in self.measured.items():
            alone = replace(measured, decoder=NetworkCalibration(), encoders={})
            self.loaded.tune(measured if way == AFTER else alone, shape)
        specs = [replace(self.spec, prompt=next(self.new)) for _ in range(JOBS)]
        samples = [Sample.begin(self.course) for _ in specs]
        for sample in samples:
            self.runner.start(sample)
        lanes = self.runner.lanes
        encode = seconds(lambda: self.aside.run([lambda: self.runner.preparation.encode_prompts(specs)]))
        evaluate = seconds(lambda: self.runner.tick(samples, lanes))
        decode = seconds(lambda: self.runner.pictures(samples, self.latents, lanes))
        return encode, decode, evaluate * len(self.course)

    def medians(self) -> dict[str, list[float]]:
        """Milliseconds a job by way. The ways take turns, so that other load on the machine slows both."""
        taken: dict[str, list[tuple[float, float, float]]] = {BEFORE: [], AFTER: []}
        for _, way in itertools.product(range(1 + TURNS), taken):
            taken[way].append(self.turn(way))
        return {
            way: [1000 * median(part) / JOBS for part in zip(*turns[1:], strict=True)] for way, turns in taken.items()
        }
