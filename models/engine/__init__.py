"""The engine: pictures of any sampler, length and guidance in one running batch."""

from models.engine.engine import (
    DeadlineExceeded,
    Engine,
    EngineDied,
    Handle,
    Image,
    SampleCancelled,
    SampleFailed,
)

__all__ = ["DeadlineExceeded", "Engine", "EngineDied", "Handle", "Image", "SampleCancelled", "SampleFailed"]
