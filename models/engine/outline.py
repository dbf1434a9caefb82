"""Estimates the cost of drawing, without drawing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from models.calibration.packing import packed, seconds_of
from models.calibration.probes import shape_of
from models.calibration.result import NetworkCalibration
from models.engine.preparing import added_cost
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
        reusing_rows: of the first two, those in which deep blocks are left out.
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
    reusing_rows: int
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
    table, guided = course.table, course.guided
    lanes, limit = runner.calibration.layout.lanes, runner.limit(course.shape)
    rows = dict.fromkeys(("denoiser", "guide", "classifier", "reusing"), 0)
    flop, seconds, added = 0, 0.0, added_cost(runner.denoiser, course.inputs.extras)
    is_known = shape_of(course.inputs.conditional) == runner.evaluator.measured  # a longer prompt takes longer
    for name, network, each, reuses in _calls(runner, course):
        count = each * pictures
        if network is None or not count:
            continue
        rows[name] += count
        rows["reusing"] += count * reuses
        is_known = is_known and network.is_measured and network.row_flop > 0
        cost = added if name == "denoiser" else 1.0
        flop += round(count * network.row_flop * cost)
        work = [(network, count)]
        seconds += cost * seconds_of(work, packed(work, lanes=lanes, limit=limit), lanes=lanes)
    return Outline(
        timesteps=tuple(table.timestep.tolist()),
        sigmas=tuple((table.sigma / table.alpha).tolist()),
        guided=guided,
        denoiser_rows=rows["denoiser"],
        guide_rows=rows["guide"],
        classifier_rows=rows["classifier"],
        reusing_rows=rows["reusing"],
        flop=flop if is_known else None,
        seconds=seconds if is_known else None,
        readings=course.inputs.readings,
        remarks=course.inputs.remarks,
    )


def _calls(runner: Runner, course: Course) -> Iterator[tuple[str, NetworkCalibration | None, int, bool]]:
    """Which network, its calibration, its rows and whether these reuse what deep blocks found, by evaluation."""
    guidance, calibration = course.spec.guidance, runner.calibration_for(course.shape)
    guide = runner.siblings[guidance.guide_pack].calibration_for(course.shape) if guidance.guide_pack else None
    kept: set[Row] = set()
    for position in range(len(course)):
        is_guided = position in course.guided
        wanted = set(guidance.rows(active=is_guided))
        theirs = wanted & {Row.UNCONDITIONAL} if guide else set[Row]()
        for name, network, asked in (
            ("denoiser", calibration.denoiser, wanted - theirs),
            ("guide", guide.denoiser if guide else calibration.denoiser, theirs),
        ):
            yield name, network, len(asked - kept), False
            yield name, network.reusing, len(asked & kept), True
        yield "classifier", calibration.classifier, int(guidance.wants_classifier(active=is_guided)), False
        kept = wanted if course.reuses(position + 1) else set()
