"""The folder of a review's classifier, looked at without loading it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.pack import HUB_ID, InvalidPack, downloaded, read_object

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"


class InvalidReview(ValueError):
    """Pictures can't be reviewed as the settings say; the message names the folder or the label at fault."""


@dataclass(frozen=True, kw_only=True)
class ReviewFolder:
    """A folder as `save_pretrained` of transformers writes it for an image classifier and its processor.

    Attributes:
        folder: holds `config.json`, `preprocessor_config.json` and safetensors.
        labels: the classifier's labels in the order of its outputs.
    """

    folder: Path
    labels: tuple[str, ...]

    def digest(self) -> str:
        """SHA-256 over everything that the scores depend on."""
        digest = hashlib.sha256()
        for path in sorted((self.folder / CONFIG, self.folder / PROCESSOR, *self.folder.glob("*.safetensors*"))):
            digest.update(path.name.encode() + b"\0")
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def open_review(wanted: str, labels: Iterable[str]) -> ReviewFolder:
    """Find the folder, or download `owner/name@COMMIT` from the hub, and check that it has these labels.

    Raises:
        InvalidReview: there is no such folder, it is no image classifier in safetensors, or it lacks a label.
    """
    try:
        found = _read(_folder(wanted))
    except InvalidPack as error:  # also of what reads files for packs
        raise InvalidReview(str(error)) from error
    if unknown := [label for label in labels if label not in found.labels]:
        names = ", ".join(map(repr, unknown))
        raise InvalidReview(f"the review's model has no label {names}; its labels are: {', '.join(found.labels)}")
    return found


def _folder(wanted: str) -> Path:
    folder = Path(wanted).expanduser()
    on_hub = None if folder.is_dir() else HUB_ID.fullmatch(wanted)
    if on_hub is not None:
        files = (CONFIG, PROCESSOR, "*.safetensors", "*.index.json")
        return downloaded(on_hub["repository"], on_hub["revision"], files)
    if not folder.is_dir():
        raise InvalidReview(f"'{wanted}' is neither a folder nor owner/name@COMMIT on the hub (40 hex digits)")
    return folder


def _read(folder: Path) -> ReviewFolder:
    for name, what in ((CONFIG, "an image classifier of transformers"), (PROCESSOR, "with an image processor")):
        if not (folder / name).is_file():
            raise InvalidReview(f"{folder} has no {name}: it must be {what}")
    if not any(folder.glob("*.safetensors")):
        raise InvalidReview(f"{folder} has no weights in safetensors; others are not loaded")
    config = read_object(folder / CONFIG)
    if config.get("problem_type") == "regression":
        raise InvalidReview(f"{folder / CONFIG}: problem_type is regression, and a review needs scores from 0 to 1")
    return ReviewFolder(folder=folder, labels=_labels(folder, config))


def _labels(folder: Path, config: dict[str, Any]) -> tuple[str, ...]:
    named = config.get("id2label")
    if not isinstance(named, dict) or set(named) != {str(index) for index in range(len(named))} or not named:
        raise InvalidReview(f"{folder / CONFIG}: id2label must name the classes 0 to N-1, not {json.dumps(named)}")
    return tuple(str(named[str(index)]) for index in range(len(named)))
