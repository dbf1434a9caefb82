"""IP-Adapters: read from a pack's folder, and the pictures that single rows of a batch are prompted with."""

from models.adapters.images.loaded import ImagePrompts

__all__ = ["ImagePrompts"]
