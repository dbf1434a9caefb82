"""The dial's measures as a JSON file, to which each point is added when it is measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.pack import InvalidPack


@dataclass(frozen=True, kw_only=True)
class Point:
    """The measures of one mode at one scale; `None` for those that could not be taken.

    Attributes:
        accuracy: share that the judge recognises.
        frechet: distance between the features of drawn and real pictures.
        precision, recall: share of drawn pictures near real ones, and the reverse.
        sharpness: of the judge's predictions, 1 to the number of classes.
        clip: CLIP score, for prompts.
    """

    mode: str
    scale: float | None
    accuracy: float | None
    frechet: float | None
    precision: float | None
    recall: float | None
    sharpness: float | None
    clip: float | None


class Record:
    """Points that were measured with one setting, kept in a file so that an interrupted measurement goes on.

    Args:
        path: the file, or `None` to keep them in memory.
        about: what was measured and how, as JSON has it.
        force: replace a file that holds another measurement.

    Raises:
        InvalidPack: the file holds another measurement, or something else.
    """

    def __init__(self, path: Path | None, about: Mapping[str, Any], *, force: bool = False) -> None:
        self._path, self._about = path, dict(about)
        self._points: dict[tuple[str, float | None], Point] = {}
        if path is not None and path.exists() and not force:
            self._points = {(point.mode, point.scale): point for point in self._read(path)}

    def _read(self, path: Path) -> list[Point]:
        try:
            content = json.loads(path.read_text())
            points = [Point(**point) for point in content.pop("points")]
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidPack(f"{path} is not a measurement that could go on: --force replaces it") from error
        names = dict.fromkeys([*self._about, *content])
        if others := [name for name in names if content.get(name) != self._about.get(name)]:
            told = ", ".join(f"{name} {content.get(name)}, not {self._about.get(name)}" for name in others)
            raise InvalidPack(f"{path} holds another measurement ({told}): --force replaces it")
        return points

    def get(self, mode: str, scale: float | None) -> Point | None:
        """What is known of a mode at a scale."""
        return self._points.get((mode, scale))

    def add(self, point: Point) -> None:
        """Keep a point."""
        self._points[point.mode, point.scale] = point
        if self._path is not None:
            content = {**self._about, "points": [asdict(each) for each in self._points.values()]}
            unfinished = self._path.with_name(self._path.name + ".unfinished")
            unfinished.write_text(json.dumps(content, indent=2) + "\n")
            unfinished.replace(self._path)
