"""Weights as int8, for memory or for products of int8, and weights in the host's memory until their layer runs."""

from __future__ import annotations

from models.weights.offloading import LAYERS_AT_ONCE, offload, turn
from models.weights.products import (
    Int8Conv2d,
    has_int8_products,
    is_multiplied,
    multiplied_bytes,
    with_int8_products,
)
from models.weights.quantization import int8_bytes, is_quantized, quantize

__all__ = [
    "LAYERS_AT_ONCE",
    "Int8Conv2d",
    "has_int8_products",
    "int8_bytes",
    "is_multiplied",
    "is_quantized",
    "multiplied_bytes",
    "offload",
    "quantize",
    "turn",
    "with_int8_products",
]
