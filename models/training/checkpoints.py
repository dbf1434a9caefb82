"""A training run's state on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


class OtherRun(ValueError):
    """The folder holds a run with other settings; the message names the first that differs."""


class NoSpace(Exception):
    """The disk has no room for a checkpoint."""


def write_checkpoint(path: Path, state: Mapping[str, Any], step: int) -> None:
    """Write a run's state after `step`, or leave the one before if the process is killed while writing.

    Raises:
        NoSpace: the disk is full.
    """
    partial = path.with_suffix(".partial")
    try:
        torch.save(dict(state), partial)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        partial.unlink(missing_ok=True)
        raise NoSpace(
            f"the checkpoint of step {step} can't be written to {path.parent}: {str(error).partition(chr(10))[0]} "
            "(the one before is kept; make room and start again)"
        ) from error
    os.replace(partial, path)


def read_checkpoint(path: Path, settings: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Read a run's state.

    Raises:
        OtherRun: the run had other settings than these.
    """
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
    for key, before in state.get("settings", {}).items():
        if settings.get(key) != before:
            raise OtherRun(
                f"{path.parent.parent} holds a run with {key} {before}, and this one has {settings.get(key)}: give the "
                "same, choose another folder, or start anew with --force"
            )
    return state


def check_space(path: Path, needed: int) -> None:
    """Refuse to start what could not be saved; the checkpoint before stays until the next one is whole.

    Raises:
        NoSpace: the disk has less room than a checkpoint needs.
    """
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise NoSpace(
            f"the disk of {path.parent} is full: a checkpoint needs {needed >> 20} MB, and {free >> 20} MB are free",
        )
