"""Counts a network's floating-point operations with torch's counter."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    conv_flop_count,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)


def flop_of(call: Callable[[], object], *, compiled: bool = False) -> int:
    """Count the floating-point operations of a call, 2 per multiply-add. Set `compiled` if its networks are."""
    uncompiled = torch.compiler.set_stance("force_eager") if compiled else nullcontext()  # importing it takes seconds
    with uncompiled, FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def _flop(x_shape: list[int], w_shape: list[int], *_: Any, out_shape: list[int], **__: Any) -> int:
    return conv_flop_count(x_shape, w_shape, out_shape)


def _transposed_flop(x_shape: list[int], w_shape: list[int], *_: Any, out_shape: list[int], **__: Any) -> int:
    return conv_flop_count(x_shape, w_shape, out_shape, transposed=True)


def _int8_flop(x_shape: list[int], scale: float, zero: int, w_shape: list[int], *_: Any, **__: Any) -> int:
    """Of tokens (N,in) and packed weights (in,out)."""
    return 2 * x_shape[0] * w_shape[0] * w_shape[1]


def _int8_convolution_flop(
    x_shape: list[int], scale: float, zero: int, w_shape: list[int], *_: Any, out_shape: list[int], **__: Any
) -> int:
    return conv_flop_count(x_shape, w_shape, out_shape)


def _attention_flop(query: list[int], key: list[int], value: list[int], *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flop(
    gradient: list[int], query: list[int], key: list[int], value: list[int], *_: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# torch itself counts attention on CUDA only.
register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)(_attention_flop)
register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward)(_attention_backward_flop)
if torch.backends.mkldnn.is_available():
    register_flop_formula(torch.ops.mkldnn._convolution_pointwise)(_flop)
    register_flop_formula(torch.ops.mkldnn._convolution_transpose_pointwise)(_transposed_flop)
    register_flop_formula(torch.ops.onednn.qlinear_pointwise)(_int8_flop)
    register_flop_formula(torch.ops.onednn.qconv2d_pointwise)(_int8_convolution_flop)
