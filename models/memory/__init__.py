"""The memory of packs: what they share."""

from __future__ import annotations

from models.memory.sharing import load_shared

__all__ = ["load_shared"]
