"""The dial of the guidance papers: what pictures gain and lose as the scale rises, mode by mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from models.classifiers import Judge
from models.engine import Engine
from models.evaluation.features import ClipScore, Features
from models.evaluation.measures import frechet_distance, precision_and_recall, recognised, sharpness
from models.evaluation.record import Point, Record
from models.evaluation.references import Reference
from models.pack import Pack
from models.spec import Guidance, SampleSpec, StepCache

FREE_SCALES = (1.5, 2.0, 3.0, 5.0)  # at 1 it is no guidance, which is a mode of its own
CLASSIFIER_SCALES = (1.0, 2.0, 5.0, 10.0)
MODES = ("none", "classifier_free", "classifier", "classifier_alone", "combined")
SHOWN = 8  # pictures of one seed
CHUNK = 100  # pictures that are drawn together


@dataclass(frozen=True)
class Request:
    """What a picture is to show: a class, a prompt or both."""

    label: int | None
    prompt: str | None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How pictures of one point are drawn.

    Attributes:
        sampler, steps: as in requests.
        seed: of the first picture; others differ by their index.
        count: number of pictures.
        cache: when deep blocks run; `None` is always.
    """

    sampler: str
    steps: int
    seed: int
    count: int
    cache: StepCache | None = None


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """What pictures are measured with; each may be missing."""

    judge: Judge | None
    features: Features | None
    reference: Reference | None
    clip: ClipScore | None


def modes_of(pack: Pack, *, has_null: bool, is_conditional: bool) -> tuple[str, ...]:
    """The modes that a pack has, in the order of `MODES`."""
    steered = pack.has_classifier
    free = has_null and is_conditional
    has = {
        "none": True,
        "classifier_free": free,
        "classifier": steered and is_conditional,
        "classifier_alone": steered and has_null,
        "combined": steered and free,
    }
    return tuple(mode for mode in MODES if has[mode])


def guidance_of(mode: str, scale: float, pack: Pack) -> Guidance:
    """Guidance of a mode; `combined` has the pack's classifier-free scale beside the classifier's `scale`."""
    match mode:
        case "none":
            return Guidance()
        case "classifier_free":
            return Guidance(free_scale=scale)
        case "classifier":
            return Guidance(classifier_scale=scale)
        case "classifier_alone":
            return Guidance(classifier_scale=scale, conditional=False)
        case _:
            return Guidance(free_scale=float(pack.defaults.get("guidance_scale", 2.0)), classifier_scale=scale)


def scales_of(mode: str, given: Sequence[float]) -> tuple[float, ...]:
    """The scales of a mode, in rising order: those given, or defaults."""
    if mode == "none":
        return (0.0,)
    return tuple(sorted(given)) or (FREE_SCALES if mode == "classifier_free" else CLASSIFIER_SCALES)


class Dial:
    """Draws and measures a pack's pictures.

    Attributes:
        instruments: what they are measured with.
        shown: the first pictures of each point, by mode and scale, (SHOWN,C,H,W), if they are to be shown.
    """

    def __init__(
        self, engine: Engine, pack: Pack, requests: Sequence[Request], setting: Setting, instruments: Instruments
    ) -> None:
        self._engine, self._pack, self._setting, self.instruments = engine, pack, setting, instruments
        self._requests = [requests[number % len(requests)] for number in range(setting.count)]
        self.shown: dict[tuple[str, float], Tensor] = {}

    def points(self, modes: Sequence[str], scales: Sequence[float], record: Record, *, shows: bool) -> Iterator[Point]:
        """Measure each mode at each scale, but for what is recorded already."""
        for mode in modes:
            for scale in scales_of(mode, scales):
                guidance = guidance_of(mode, scale, self._pack)
                point = record.get(mode, None if mode == "none" else scale)
                if point is None:
                    pictures = self._drawn(guidance, self._setting.count)
                    point = self._measured(mode, None if mode == "none" else scale, pictures)
                    record.add(point)
                    self.shown[mode, scale] = pictures[:SHOWN]
                elif shows:
                    self.shown[mode, scale] = self._drawn(guidance, SHOWN)
                yield point

    def _drawn(self, guidance: Guidance, count: int) -> Tensor:
        """The first pictures (N,C,H,W), `uint8`."""
        specs = [
            SampleSpec(
                pack=self._pack.name,
                label=request.label,
                prompt=request.prompt,
                guidance=guidance,
                sampler=self._setting.sampler,
                steps=self._setting.steps,
                cache=self._setting.cache,
                seed=self._setting.seed,
                image_index=number,
            )
            for number, request in enumerate(self._requests[:count])
        ]
        pictures = []
        with tqdm(total=len(specs), unit="pictures", leave=False, disable=None) as progress:
            for start in range(0, len(specs), CHUNK):
                drawn = self._engine.generate(specs[start : start + CHUNK])
                pictures += [torch.from_numpy(picture) for picture in drawn]
                progress.update(len(drawn))
        return torch.stack(pictures).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def _measured(self, mode: str, scale: float | None, pictures: Tensor) -> Point:
        judge, clip = self.instruments.judge, self.instruments.clip
        features, reference = self.instruments.features, self.instruments.reference
        labels = [request.label for request in self._requests]
        labelled = [label for label in labels if label is not None]
        accuracy = sharp = frechet = precision = recall = None
        if judge is not None:
            sharp = sharpness(torch.cat([judge(part) for part in pictures.split(512)]))
            if len(labelled) == len(labels):
                accuracy = recognised(judge, pictures, torch.tensor(labelled))
        if features is not None and reference is not None:
            own = features(pictures)
            frechet = frechet_distance(own.mean(0), own.T.cov(), reference.mean, reference.covariance)
            if reference.features is not None:
                precision, recall = precision_and_recall(own, reference.features)
        prompts = [request.prompt or "" for request in self._requests]
        return Point(
            mode=mode,
            scale=scale,
            accuracy=accuracy,
            frechet=frechet,
            precision=precision,
            recall=recall,
            sharpness=sharp,
            clip=clip(pictures, prompts) if clip is not None and any(prompts) else None,
        )


HEAD = f"{'mode':<18} {'scale':>6} {'recognised':>10} {'Fréchet':>9} {'precision':>9} {'recall':>7} {'sharpness':>9}"


def line_of(point: Point) -> str:
    """A line of the printed table."""

    def cell(value: float | None, form: str, width: int) -> str:
        return f"{'-' if value is None else format(value, form):>{width}}"

    clip = "" if point.clip is None else f"   CLIP {point.clip:.1f}"
    return (
        f"{point.mode:<18} {cell(point.scale, 'g', 6)} {cell(point.accuracy, '.1%', 10)} "
        f"{cell(point.frechet, '.2f', 9)} "
        f"{cell(point.precision, '.3f', 9)} {cell(point.recall, '.3f', 7)} {cell(point.sharpness, '.2f', 9)}{clip}"
    )


def markdown_of(points: Sequence[Point]) -> str:
    """The table for a document."""

    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    rows = [
        f"| {point.mode} | {cell(point.scale, 'g')} | {cell(point.accuracy, '.1%')} | {cell(point.frechet, '.2f')} | "
        f"{cell(point.precision, '.3f')} | {cell(point.recall, '.3f')} | {cell(point.sharpness, '.2f')} |"
        for point in points
    ]
    head = "| mode | scale | recognised | Fréchet distance | precision | recall | sharpness |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])
