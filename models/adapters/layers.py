"""Layers that add each row's own low-rank product to what they put out for all rows together.

Each row's product is computed by itself, from tensors of the same shapes and strides whatever else is in the batch, so
its bits don't depend on the neighbours.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.adapters.rows import LowRank, rows_in_batch
from models.cpu_layers import PrepackedConv2d, has_onednn
from models.lanes import first_call
from models.weights import Int8Conv2d

CONVOLUTIONS = (nn.Conv2d, PrepackedConv2d, Int8Conv2d)
_called: set[tuple[object, ...]] = set()


def make_adaptable(layer: nn.Module) -> None:
    """Have a linear layer or a convolution add the rows' products from now on, while other threads may use it."""
    plain = layer.forward
    if not (isinstance(plain, partial) and plain.func is _adapted):
        layer.forward = partial(_adapted, layer, plain)


def down_layer(layer: Any, weight: Tensor) -> nn.Module:
    """The layer of `weight` (r,in) or (r,in,kernel,kernel) that reads what `layer` reads."""
    rank = len(weight)
    with torch.device("meta"):
        if isinstance(layer, CONVOLUTIONS):
            how: Any = {name: getattr(layer, name) for name in ("stride", "padding", "dilation")}
            kernel: Any = tuple(weight.shape[2:])
            down: nn.Module = nn.Conv2d(weight.shape[1], rank, kernel, **how, bias=False)
        else:
            down = nn.Linear(weight.shape[1], rank, bias=False)
    down.weight = nn.Parameter(weight, requires_grad=False)
    is_on_cpu = weight.device.type == "cpu"
    return PrepackedConv2d(down) if isinstance(down, nn.Conv2d) and is_on_cpu and has_onednn(down) else down


def _adapted(layer: Any, plain: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    output: Tensor = plain(x, *args, **kwargs)
    for number, row in enumerate(rows_in_batch()):
        change = None if row is None else row.adapters.get(layer)
        if change is not None:
            with first_call(_called, (type(layer), x.shape[1:], change.up.shape, x.dtype)):
                _add(change, x[number : number + 1].contiguous(), output[number], layer.bias)
    return output


def _add(change: LowRank, x: Tensor, output: Tensor, bias: Tensor | None) -> None:
    """Add the product of one row (1,…,in) or (1,in,H,W) to its output (…,out) or (out,H,W)."""
    is_convolution = isinstance(change.down, CONVOLUTIONS)
    if change.gain is not None:
        weighted, gain = output if bias is None else output - _by_output(bias, is_convolution), change.gain
        output += weighted * _by_output(gain, is_convolution)
    inner = change.down(x)
    if is_convolution:
        output += (change.up @ inner.reshape(inner.shape[1], -1)).view(output.shape)
    else:
        output += (inner.reshape(-1, inner.shape[-1]) @ change.up.T).view(output.shape)


def _by_output(values: Tensor, is_convolution: bool) -> Tensor:
    """Values (out,) in the shape of a row's output."""
    return values[:, None, None] if is_convolution else values


def dense_weight(layer: Any) -> Tensor:
    """A layer's weights in float32, also if they are packed or quantized."""
    weight: Tensor = layer.weight
    return (weight.to_dense() if weight.is_mkldnn else weight.dequantize()).float()
