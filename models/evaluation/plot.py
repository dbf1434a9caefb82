"""Plots the dial: what guidance makes of precision, recall and distance, and of the pictures of one seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from models.evaluation.record import Point

_NAMES = {
    "none": "no guidance",
    "classifier_free": "classifier-free",
    "classifier": "classifier",
    "classifier_alone": "classifier, unconditional base",
    "combined": "both",
}
_COLOURS = {
    "none": "0.3",
    "classifier_free": "C0",
    "classifier": "C1",
    "classifier_alone": "C2",
    "combined": "C3",
}
_ROW = 0.55  # inches of a row of pictures


def save_plot(points: Sequence[Point], shown: Mapping[tuple[str, float], Tensor], title: str, path: Path) -> None:
    """Save recall over precision, distance over scale, and below them the same seeds at every scale."""
    rows = len(shown)
    figure = Figure(figsize=(11, 4.4 + _ROW * rows), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[4.4, max(_ROW * rows, 0.1)])
    above, below = parts
    left, right = above.subplots(1, 2)
    has_recall = any(point.recall is not None for point in points)
    modes = list(dict.fromkeys(point.mode for point in points))
    for mode in modes:
        own = [point for point in points if point.mode == mode]
        style = {"color": _COLOURS[mode], "marker": "o", "label": _NAMES[mode]}
        if has_recall:
            _curve(left, own, "precision", "recall", style)
        else:
            _curve(left, own, "sharpness", "accuracy", style)
        _over_scale(right, own, style)
    if has_recall:
        left.set(xlabel="precision: drawn pictures that are like real ones", ylabel="recall: real ones it can draw")
        left.set_title("diverse (top) ↔ typical (right)", fontsize=10)
    else:
        left.set(xlabel="sharpness of the judge", ylabel="recognised by the judge")
    right.set(xlabel="guidance scale", ylabel="Fréchet distance to real pictures", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    above.suptitle(title, fontsize=11)
    _pictures(below, shown)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _curve(axes: Any, points: Sequence[Point], across: str, up: str, style: Mapping[str, Any]) -> None:
    known = [point for point in points if getattr(point, across) is not None and getattr(point, up) is not None]
    axes.plot([getattr(point, across) for point in known], [getattr(point, up) for point in known], **style)
    for point in known:
        if point.scale is not None:
            place = (getattr(point, across), getattr(point, up))
            axes.annotate(f"{point.scale:g}", place, textcoords="offset points", xytext=(4, 4), fontsize=7)


def _over_scale(axes: Any, points: Sequence[Point], style: Mapping[str, Any]) -> None:
    known = [(point.scale, point.frechet) for point in points if point.frechet is not None]
    if known and known[0][0] is None:
        axes.axhline(known[0][1], color=style["color"], linestyle=":", label=style["label"])
    else:
        axes.plot([scale for scale, _ in known], [distance for _, distance in known], **style)


def _pictures(below: Any, shown: Mapping[tuple[str, float], Tensor]) -> None:
    axes = below.subplots(len(shown), 1, squeeze=False)[:, 0]
    for row, ((mode, scale), pictures) in zip(axes, shown.items(), strict=True):
        strip = np.concatenate([picture.permute(1, 2, 0).numpy() for picture in pictures], axis=1)
        row.imshow(strip.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        row.set_xticks([])
        row.set_yticks([])
        for side in row.spines.values():
            side.set_visible(False)
        name = _NAMES[mode] if mode == "none" else f"{_NAMES[mode]}, {scale:g}"
        row.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
