"""The engine: pictures of any sampler, length and guidance in one running batch."""

from models.engine.calibrate import cached_calibration, calibrate, calibration_key
from models.engine.calibration import Calibration
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
    "Calibration",
    "DeadlineExceeded",
    "Engine",
    "EngineDied",
    "Handle",
    "Image",
    "OutOfMemory",
    "Outline",
    "SampleCancelled",
    "SampleFailed",
    "cached_calibration",
    "calibrate",
    "calibration_key",
    "results",
]
