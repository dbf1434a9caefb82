"""A folder of ControlNets, as diffusers saves them."""

from __future__ import annotations

import difflib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from models.adapters.controls.family import ControlFamily
from models.adapters.controls.flux import FluxControls
from models.adapters.controls.stable_diffusion_3 import SD3Controls
from models.adapters.controls.unet import UNetControls
from models.adapters.errors import InvalidControl, InvalidControls
from models.configs import check_keys, defaults
from models.loading import weight_files
from models.pack import InvalidPack, read_object

FAMILIES: dict[str, type[ControlFamily]] = {
    family.network_class.__name__: family for family in (UNetControls, SD3Controls, FluxControls)
}
"""By the class of their ControlNets."""
Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class ListedControl:
    """A ControlNet in the folder, as one pack sees it.

    Attributes:
        name: under which it is asked for.
        digest: SHA-256 of its configuration and weights; empty if they can't be read.
        family: of the models that it is for.
        fault: why the pack can't use it; `None` if it can.
    """

    name: str
    digest: str = ""
    family: str | None = None
    fault: str | None = None


class ControlFolder:
    """The ControlNets in a folder by name: each is a folder with config.json and weights as safetensors.

    They are those that were there at first: one that is replaced later is refused until the process starts again.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamps: dict[str, Stamp] = {}
        self._digests: dict[str, str] = {}
        self._faults: dict[str, str] = {}
        for folder in sorted(path.iterdir()):
            if (folder / "config.json").is_file() and not folder.name.startswith("."):
                self._find(folder)

    def _find(self, folder: Path) -> None:
        name = folder.name
        self._faults[name], self._digests[name] = "", ""
        try:
            files = _files(folder)
            self._stamps[name], self._digests[name] = _stamp(files), _digest(files)
            config = read_object(files[0])
            family = FAMILIES.get(str(config.get("_class_name")))
            if family is None:
                raise InvalidPack(f"it is of class {config.get('_class_name')}; served: {', '.join(FAMILIES)}")
            check_keys(config, family.keys, files[0], defaults(family.network_class))
        except (InvalidPack, OSError) as error:
            self._faults[name] = str(error).replace(str(self.path), self.path.name)  # cards show it to everybody

    def listed(self, family: ControlFamily) -> tuple[ListedControl, ...]:
        """All of them, as the pack sees them whose family this is."""
        return tuple(self._listed(name, family) for name in self._faults)

    def _listed(self, name: str, family: ControlFamily) -> ListedControl:
        if fault := self._faults[name]:
            return ListedControl(name=name, digest=self._digests[name], fault=fault)
        config = read_object(self.path / name / "config.json")
        kind = FAMILIES[config["_class_name"]]
        config = {**defaults(kind.network_class), **config}
        own = kind.family_of(config)
        why = f"it is for {own}, and the model is {family.name}" if own != family.name else family.difference(config)
        return ListedControl(name=name, digest=self._digests[name], family=own, fault=why)

    def found(self, name: str) -> tuple[Path, str]:
        """The folder of one of them, and its digest.

        Raises:
            InvalidControls: there is none of that name.
            InvalidControl: it can't be used, or has changed.
        """
        if name not in self._faults:
            similar = difflib.get_close_matches(name, self._faults, 1)
            hint = f"did you mean '{similar[0]}'?" if similar else f"there are: {', '.join(self._faults) or 'none'}"
            raise InvalidControls(f"controls: there is no ControlNet '{name}' here; {hint}")
        if fault := self._faults[name]:
            raise InvalidControl(fault)
        folder = self.path / name
        try:
            is_same = _stamp(_files(folder)) == self._stamps[name]
        except (InvalidPack, OSError):
            is_same = False
        if not is_same:
            raise InvalidControl("its files have changed since this worker started; restart it to use them")
        return folder, self._digests[name]


def _files(folder: Path) -> list[Path]:
    return [folder / "config.json", *weight_files(folder)]


def _stamp(files: list[Path]) -> Stamp:
    states = [(file.name, os.stat(file)) for file in files]
    return tuple((name, state.st_ino, state.st_mtime_ns, state.st_size) for name, state in states)


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
