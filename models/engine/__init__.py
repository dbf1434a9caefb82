"""The engine: pictures of any sampler, length and guidance in one running batch."""

from models.engine.engine import Engine, EngineDied, Handle, Image, SampleCancelled, SampleFailed

__all__ = ["Engine", "EngineDied", "Handle", "Image", "SampleCancelled", "SampleFailed"]
