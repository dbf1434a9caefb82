"""Weights that wait in the host's memory until their layer runs, by diffusers' group offloading."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from threading import RLock
from weakref import WeakKeyDictionary

import torch
from diffusers import AutoencoderKL
from diffusers.hooks import apply_group_offloading
from torch import nn

LAYERS_AT_ONCE = 2
"""Most layers whose weights are on the device at once: the one that runs, and the next, which is copied meanwhile."""
_turns: WeakKeyDictionary[nn.Module, AbstractContextManager[object]] = WeakKeyDictionary()


def offload(network: nn.Module, device: torch.device) -> None:
    """Have each layer of a network on the CPU copy its weights to `device` when it runs, and drop them afterwards.

    Where several threads call the network, each call must hold its `turn`. On CUDA the next layer's weights are copied
    while a layer runs; the order is learnt from the first call of the network's `forward`, which an autoencoder's
    `encode` and `decode` don't call.
    """
    has_order = device.type == "cuda" and not isinstance(network, AutoencoderKL)
    apply_group_offloading(network, onload_device=device, offload_type="leaf_level", use_stream=has_order)
    _turns[network] = RLock()


def turn(network: nn.Module) -> AbstractContextManager[object]:
    """Held by a call of a network that several threads use: one that is offloaded can run only one call at a time."""
    return _turns.get(network, nullcontext())
