"""The memory of packs: what they share, and how much they need."""

from __future__ import annotations

from models.memory.needs import Weights, autoencoder_precision, check_fits, weights_of
from models.memory.peak import peak_of
from models.memory.sharing import load_shared

__all__ = ["Weights", "autoencoder_precision", "check_fits", "load_shared", "peak_of", "weights_of"]
