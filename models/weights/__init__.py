"""Weights that need less of a device's memory: as int8, or in the host's memory until their layer runs."""

from __future__ import annotations

from models.weights.offloading import LAYERS_AT_ONCE, offload, turn
from models.weights.quantization import int8_bytes, is_quantized, quantize

__all__ = ["LAYERS_AT_ONCE", "int8_bytes", "is_quantized", "offload", "quantize", "turn"]
