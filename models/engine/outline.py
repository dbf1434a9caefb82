"""Estimates the cost of drawing, without drawing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from models.calibration.probes import shape_of
from models.calibration.result import NetworkCalibration
from models.engine.runner import Runner
from models.engine.sample import Course
from models.networks.tokens import Readings
from models.spec import Row


@dataclass(frozen=True, kw_only=True)
class Outline:
    """The course of pictures that differ only in their seeds, and its cost.

    Attributes:
        timesteps: the network's, evaluation by evaluation.
        sigmas: σ/α of the network's input, evaluation by evaluation.
        guided: the evaluations at which guidance is on.
        denoiser_rows: rows of all pictures through the pack's denoiser.
        guide_rows: rows through a second pack's denoiser.
        classifier_rows: rows through the classifier, forward and backward.
        flop: of all rows, as torch counts them: 2 per multiply-add. `None` if not counted.
        readings: how the denoiser's text encoders read the prompts.
        remarks: what of the prompts the networks do not read.
        seconds: estimated time of the networks on this device when it does nothing else. `None` if not measured.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    guided: range
    denoiser_rows: int
    guide_rows: int
    classifier_rows: int
    flop: int | None
    seconds: float | None
    readings: Readings = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def evaluations(self) -> int:
        """Network evaluations of one picture."""
        return len(self.timesteps)


def outline(runner: Runner, course: Course, *, pictures: int) -> Outline:
    """Outline `pictures` pictures of one course, which differ only in their seeds."""
    spec, table, guided = course.spec, course.table, course.guided
    calibration, lanes = runner.calibration_for(course.shape), runner.calibration.layout.lanes
    guide_runner = runner.siblings[spec.guidance.guide_pack] if spec.guidance.guide_pack else None
    guide = guide_runner.calibration_for(course.shape) if guide_runner else None
    rows = dict.fromkeys(("denoiser", "guide", "classifier"), 0)
    flop, seconds = 0, 0.0
    is_known = shape_of(course.inputs.conditional) == runner.evaluator.measured  # a longer prompt takes longer
    for position in range(len(table)):
        is_guided = position in guided
        wanted = spec.guidance.rows(active=is_guided)
        guide_count = wanted.count(Row.UNCONDITIONAL) if guide else 0
        calls: list[tuple[str, NetworkCalibration | None, int]] = [
            ("denoiser", calibration.denoiser, len(wanted) - guide_count),
            ("guide", guide.denoiser if guide else None, guide_count),
            ("classifier", calibration.classifier, int(spec.guidance.wants_classifier(active=is_guided))),
        ]
        for name, network, each in calls:
            count = each * pictures
            if network is None or not count:
                continue
            rows[name] += count
            is_known = is_known and network.is_measured and network.row_flop > 0
            flop += count * network.row_flop
            batches = network.batches(count, lanes=lanes, limit=runner.limit(course.shape))
            rounds = math.ceil(len(batches) / lanes)
            seconds += rounds * lanes * network.row_seconds(batches[0])  # row_seconds assumes that every lane is busy
    return Outline(
        timesteps=tuple(table.timestep.tolist()),
        sigmas=tuple((table.sigma / table.alpha).tolist()),
        guided=guided,
        denoiser_rows=rows["denoiser"],
        guide_rows=rows["guide"],
        classifier_rows=rows["classifier"],
        flop=flop if is_known else None,
        seconds=seconds if is_known else None,
        readings=course.inputs.readings,
        remarks=course.inputs.remarks,
    )
