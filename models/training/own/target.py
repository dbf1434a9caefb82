"""The folder that a run writes to: it is the run's own, or new."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from models.networks.sentences import CAPTIONS_FILE
from models.pack import HUB_ID, PACKS_FOLDER, REFERENCES, Pack, component_digest
from models.training.own.folders import InvalidPictures

_WRITTEN = ("unet", "transformer", "scheduler", "classifier", "judge", "training")
_FILES = ("model_index.json", "README.md", CAPTIONS_FILE, REFERENCES)
_MARK = "kind.txt"


class TargetExists(InvalidPictures):
    """The folder holds something that would be overwritten."""


def claim(out: Path, kind: str, *, force: bool) -> None:
    """Make the folder this kind of run's, or empty it with `force` of what such runs write.

    Raises:
        TargetExists: it holds something else.
    """
    mark = out / "training" / _MARK
    if force:
        for name in _WRITTEN:
            shutil.rmtree(out / name, ignore_errors=True)
        for name in _FILES:
            (out / name).unlink(missing_ok=True)
    if out.exists() and not out.is_dir():
        raise TargetExists(f"-o {out} is a file; give the folder of the pack to write")
    if mark.is_file():
        if (other := mark.read_text().strip()) != kind:
            raise TargetExists(
                f"{out} holds what `train {other}` made: choose another folder, or replace it with --force"
            )
    elif not force and out.exists() and any(out.iterdir()):
        raise TargetExists(f"{out} is not empty: choose another folder, or --force to replace the pack in it")
    else:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(kind + "\n")


def refer(out: Path, pack: Pack, given: str, *, without: Collection[str]) -> None:
    """Write the file of references, by which the pack in `out` takes all components of `pack` but some.

    Args:
        out: the folder.
        pack: the pack that has the components.
        given: how it was named. A folder is referred to from `out`, others by name.
        without: components that `out` has itself.
    """
    components = [name for name in pack.index if pack.component(name).is_dir()]
    parts = [*components, *(name for name in (CAPTIONS_FILE, "judge") if pack.component(name).exists())]
    on_hub = HUB_ID.fullmatch(given.rpartition("=")[2])
    if pack.folder.parent == PACKS_FOLDER:
        source = pack.folder.name
    elif on_hub and pack.folder != Path(given).absolute():
        source = on_hub[0]
    else:
        source = os.path.relpath(pack.folder, out)
    digests = {name: component_digest(pack.component(name)) for name in sorted({*parts} - {*without})}
    (out / REFERENCES).write_text(json.dumps({"pack": source, "sha256": digests}, indent=2) + "\n")
