"""Loads a pack's networks: safetensors only, never code."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from threading import RLock
from typing import Any, ParamSpec, TypeVar
from weakref import WeakMethod

import torch
from diffusers import ModelMixin
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from models.cpu_layers import strided_as_in_a_batch, sums_in_one_order, with_cpu_layers
from models.precision import FLOAT32, Precision

Network = TypeVar("Network", bound=nn.Module)
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")
_MULTIPLYING = RLock()


def load_network(network: type[Network], folder: Path, device: torch.device, precision: Precision = FLOAT32) -> Network:
    """Load a pack's network onto `device`, for inference, with frozen parameters."""
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True  # the same bytes for the same request
    if device.type == "cpu" and not sums_in_one_order():
        warnings.warn(
            "MKL's order of summation is not fixed in this process, so pictures may differ in their last bits from "
            "those of other processes. Import models before torch's first product, and leave MKL_CBWR unset or set it "
            f"to AUTO,STRICT (now: {os.environ.get('MKL_CBWR')}).",
            stacklevel=2,
        )
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # weights load too fast for one
    loaded: Any = network.from_pretrained(  # type: ignore[attr-defined]  # both diffusers and transformers have it
        folder,
        torch_dtype=getattr(torch, precision.dtype),
        use_safetensors=True,
        local_files_only=True,
        **({"low_cpu_mem_usage": False} if issubclass(network, ModelMixin) else {}),  # True needs accelerate
    )
    memory_format = torch.channels_last if precision.channels_last else torch.contiguous_format
    loaded = loaded.to(device, memory_format=memory_format).eval().requires_grad_(False)
    for module in loaded.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(_restrided)
    if precision.compiled:
        options = {"triton.cudagraphs": True} if device.type == "cuda" else {"freezing": True}
        loaded.compile(dynamic=False, options=options)
    elif device.type == "cpu":
        with_cpu_layers(loaded)
    ready: Network = loaded
    return ready


def with_float32_mode(adapter: object, device: torch.device, **precisions: Precision) -> None:
    """Wrap methods of `adapter`, by name, so that on CUDA their float32 products use the requested TF32 or IEEE mode.

    torch has one setting for all threads, and uses TF32 in convolutions by default: wrapped calls run one at a time.
    Methods in other number formats multiply no float32 numbers and are not wrapped.
    """
    for name, precision in precisions.items():
        if device.type == "cuda" and precision.dtype == FLOAT32.dtype:
            setattr(adapter, name, _multiplying(precision, getattr(adapter, name)))


def _multiplying(precision: Precision, method: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    unbound = WeakMethod(method)  # the object will hold the wrapper: a strong reference would be a cycle with weights
    settings: Any = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]

    def alone(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        bound = unbound()
        assert bound is not None, "the caller holds the object"
        with _MULTIPLYING:
            before = [setting.fp32_precision for setting in settings]
            for setting in settings:
                setting.fp32_precision = "tf32" if precision.tf32 else "ieee"
            try:
                return bound(*args, **kwargs)
            finally:
                for setting, restored in zip(settings, before, strict=True):
                    setting.fp32_precision = restored

    return alone


def _restrided(attention: Attention, arguments: Any, output: Any) -> Any:
    """For a batch of one feature map, restore the strides that a larger batch would have."""
    if isinstance(output, Tensor) and output.dim() == 4 and len(output) == 1:
        return strided_as_in_a_batch(output)
    return None
