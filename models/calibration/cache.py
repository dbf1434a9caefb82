"""Stores calibrations, so that a pack is measured once per machine."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path
from typing import Protocol

import torch
from pydantic import ValidationError

from models.calibration.machine import machine_key
from models.calibration.result import Calibration, NetworkCalibration
from models.pack import Pack

log = logging.getLogger(__name__)

_FORMAT = 22  # version of the cached files, and of how networks run


class Calibrations(Protocol):
    """A store of calibrations, by a key that covers everything they depend on."""

    def load(self, key: str) -> Calibration | None: ...

    def save(self, key: str, calibration: Calibration) -> None: ...


class FileCalibrations:
    """Keeps each calibration in a file in `$XDG_CACHE_HOME/cynosure/calibration`, or in another folder.

    The cache only saves time: where there is none, a warning is logged, once, and packs are measured at every start.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._has_warned = False

    def path(self, key: str) -> Path:
        """The file of a calibration.

        Raises:
            OSError: the user has no home folder.
        """
        if self._folder is None:
            self._folder = _cache_folder() / "cynosure" / "calibration"
        return self._folder / f"{key}.json"

    def load(self, key: str) -> Calibration | None:
        try:
            return Calibration.from_json(self.path(key).read_bytes())
        except (FileNotFoundError, ValidationError):  # or written by another version: it is measured again
            return None
        except OSError as error:
            self._warn(error)
            return None

    def save(self, key: str, calibration: Calibration) -> None:
        """Write the file, if possible."""
        try:
            path = self.path(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, calibration.to_json())
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            log.warning("measurements of packs can't be kept for the next start (%s); set XDG_CACHE_HOME", error)
        self._has_warned = True


def _cache_folder() -> Path:
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen)
    try:
        return Path.home() / ".cache"
    except RuntimeError as error:
        raise OSError(str(error)) from None


def _replace(path: Path, content: bytes) -> None:
    """Write a file completely or not at all."""
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def calibration_key(pack: Pack, device: torch.device, by_rule: Calibration) -> str:
    """Digest of everything a calibration depends on: the weights, the machine, and what the rules choose."""

    def rules(network: NetworkCalibration | None) -> str:
        if network is None:
            return "none"
        return f"{network.precision} in {network.reference}{', offloaded' if network.precision.offloaded else ''}"

    chosen = (str(by_rule.layout), rules(by_rule.denoiser), rules(by_rule.classifier))
    parts = (pack.digest(), machine_key(device), *chosen, str(_FORMAT))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
