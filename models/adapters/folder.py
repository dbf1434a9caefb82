"""Folders of adapters. That of LoRAs may change while it is served."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.adapters.controls import ControlFolder
from models.adapters.errors import InvalidLoras
from models.adapters.files import LoraFile, files_of, read_lora

Stamp = tuple[tuple[int, int, int], ...]
"""By which a changed file is known: inode, time and size of each of its files."""


class LoraFolder:
    """The LoRAs in a folder by name: that of a file without its suffix, or of a folder that peft or diffusers wrote.

    Args:
        path: the folder. What is in its sub-folders is not looked at, but for those that hold one LoRA.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def listed(self) -> Mapping[str, tuple[Path, Stamp]]:
        """What is there now, by name, with its stamp; nothing if the folder is gone."""
        found: dict[str, tuple[Path, Stamp]] = {}
        paths = self.path.iterdir() if self.path.is_dir() else ()
        for path in sorted(paths, key=lambda path: path.suffix != ".safetensors"):
            name = path.name if path.is_dir() else path.stem
            if files_of(path) and name not in found and not name.startswith("."):
                try:
                    found[name] = path, _stamp(path)
                except FileNotFoundError:  # it has just gone
                    continue
        return dict(sorted(found.items()))

    def stamp(self, name: str) -> Stamp:
        """That of one LoRA.

        Raises:
            InvalidLoras: there is none of that name.
        """
        return self._found(name)[1]

    def read(self, name: str) -> LoraFile:
        """Read one LoRA.

        Raises:
            InvalidLoras: there is none of that name.
            InvalidLora: it can't be used.
        """
        return read_lora(name, self._found(name)[0])

    def _found(self, name: str) -> tuple[Path, Stamp]:
        listed = self.listed()
        if name not in listed:
            similar = difflib.get_close_matches(name, listed, 1)
            hint = f"did you mean '{similar[0]}'?" if similar else f"there are: {', '.join(listed) or 'none'}"
            raise InvalidLoras(f"loras: there is no LoRA '{name}' here; {hint}")
        return listed[name]


def _stamp(path: Path) -> Stamp:
    states = [os.stat(file) for file in files_of(path)]
    return tuple((state.st_ino, state.st_mtime_ns, state.st_size) for state in states)


@dataclass(frozen=True, kw_only=True)
class AdapterFolders:
    """Where the adapters are that pictures may be drawn with; `None` where there are none."""

    loras: LoraFolder | None = None
    controls: ControlFolder | None = None

    @classmethod
    def at(cls, *, loras: Path | None, controls: Path | None) -> AdapterFolders:
        """Those in these folders."""
        return cls(
            loras=None if loras is None else LoraFolder(loras),
            controls=None if controls is None else ControlFolder(controls),
        )
