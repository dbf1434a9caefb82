"""The engine: pictures of any sampler, length and guidance in one running batch."""

from models.engine.engine import (
    DeadlineExceeded,
    Engine,
    EngineDied,
    Handle,
    Image,
    OutOfMemory,
    SampleCancelled,
    SampleFailed,
    results,
)
from models.engine.outline import Outline

__all__ = [
    "DeadlineExceeded",
    "Engine",
    "EngineDied",
    "Handle",
    "Image",
    "OutOfMemory",
    "Outline",
    "SampleCancelled",
    "SampleFailed",
    "results",
]
