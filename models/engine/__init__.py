"""The engine: draws pictures with any sampler, length and guidance in one running batch."""

from models.engine.engine import Engine, results
from models.engine.errors import (
    DeadlineExceeded,
    EngineDied,
    OutOfMemory,
    PackInUse,
    SampleCancelled,
    SampleFailed,
)
from models.engine.loaded import LoadedPack
from models.engine.observing import Distribution, Tally
from models.engine.outline import Outline
from models.engine.sample import Handle, Image

__all__ = [
    "DeadlineExceeded",
    "Distribution",
    "Engine",
    "EngineDied",
    "Handle",
    "Image",
    "LoadedPack",
    "OutOfMemory",
    "Outline",
    "PackInUse",
    "SampleCancelled",
    "SampleFailed",
    "Tally",
    "results",
]
