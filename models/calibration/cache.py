"""Stores calibrations, so that a pack is measured once per machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Protocol

import torch
from pydantic import ValidationError

from models.calibration.machine import machine_key
from models.calibration.result import Calibration, NetworkCalibration
from models.pack import Pack

_FORMAT = 15  # version of the cached files


class Calibrations(Protocol):
    """A store of calibrations, by a key that covers everything they depend on."""

    def load(self, key: str) -> Calibration | None: ...

    def save(self, key: str, calibration: Calibration) -> None: ...


class FileCalibrations:
    """Keeps each calibration in a file in `$XDG_CACHE_HOME/cynosure/calibration`, or in another folder."""

    def __init__(self, folder: Path | None = None) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.folder = folder or cache / "cynosure" / "calibration"

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def load(self, key: str) -> Calibration | None:
        try:
            return Calibration.from_json(self.path(key).read_bytes())
        except (OSError, ValidationError):  # missing, or written by another version: it is measured again
            return None

    def save(self, key: str, calibration: Calibration) -> None:
        """Write the file, if possible: failures are ignored, since the cache only saves time."""
        unfinished = self.path(key).with_suffix(f".{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(calibration.to_json())
            os.replace(unfinished, self.path(key))
        except OSError:
            with contextlib.suppress(OSError):
                unfinished.unlink()


def calibration_key(pack: Pack, device: torch.device, by_rule: Calibration) -> str:
    """Digest of everything a calibration depends on: the weights, the machine, and what the rules choose."""

    def rules(network: NetworkCalibration | None) -> str:
        return f"{network.precision} in {network.reference}" if network is not None else "none"

    chosen = (str(by_rule.layout), rules(by_rule.denoiser), rules(by_rule.classifier))
    parts = (pack.digest(), machine_key(device), *chosen, str(_FORMAT))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
