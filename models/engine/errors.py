"""Errors of pictures that can't be finished."""

from __future__ import annotations

import torch

from models.lanes import drop_traceback, ran_out_of_memory


class SampleFailed(RuntimeError):
    """One picture could not be made; the others in its batch were not affected."""


class SampleCancelled(SampleFailed):
    """The picture was cancelled."""


class DeadlineExceeded(SampleFailed):
    """The picture was not done in time."""


class OutOfMemory(SampleFailed):
    """The device had no memory even for this picture alone; a later attempt may succeed."""


class EngineDied(SampleFailed):
    """The engine's thread has ended, so no unfinished picture will be drawn."""


class PackInUse(RuntimeError):
    """The pack can't be unloaded: pictures of it, or that it guides, are unfinished."""


def failure_of(error: Exception) -> SampleFailed:
    """Convert `error`, raised for a sample, to the error that its handle raises.

    Raises:
        AcceleratorError: the device is lost, and every later call on it would fail the same way.
    """
    if ran_out_of_memory(error):
        drop_traceback(error)
        return OutOfMemory(f"out of memory: {error}")
    if isinstance(error, torch.AcceleratorError):
        raise error
    drop_traceback(error)
    return SampleFailed(f"{type(error).__name__}: {error}")
