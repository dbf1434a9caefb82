"""Layers that multiply int8 by int8 on CPUs, by oneDNN: weights have a step for each output, and inputs for each row.

Sums are of whole numbers, so they are exact in any order, and a row's result doesn't depend on its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

NARROW = 64
"""Layers with at most this many inputs or outputs stay as they are: the first and last ones, where rounding shows."""
MOST_INPUT, MOST_WEIGHT = 127, 63
"""CPUs without VNNI add two products of a `uint8` and an `int8` in 16 bits, which hold 2·255·64, but not 2·255·128."""
ZERO = 128
"""Stands for 0 among inputs, which oneDNN takes as `uint8`."""


def has_int8_products() -> bool:
    """Whether this build of torch has oneDNN's products of int8."""
    return torch.backends.mkldnn.is_available() and "onednn" in torch.backends.quantized.supported_engines


def is_multiplied(name: str, shape: Sequence[int]) -> bool:
    """Whether a parameter is multiplied as int8: the weights of a wide layer that embeds nothing, such as the time.

    Told by its name and shape alone, so what a network will need is known before its weights are read.
    """
    layer, _, kind = name.rpartition(".")
    return kind == "weight" and len(shape) in (2, 4) and min(shape[:2]) > NARROW and "emb" not in layer


def multiplied_bytes(shape: Sequence[int]) -> int:
    """What such weights take: a byte a number, and for each output a float32 step and an int32 zero point."""
    return prod(shape) + shape[0] * (4 + 4)


def with_int8_products(network: nn.Module) -> nn.Module:
    """Replace the linear layers and convolutions that `is_multiplied` names in a frozen network on the CPU."""
    replaced: dict[nn.Module, nn.Module] = {}
    for path, layer in list(network.named_modules(remove_duplicate=False)):  # a layer may have two names
        if layer not in replaced:
            if type(layer) is nn.Linear and is_multiplied(f"{path}.weight", layer.weight.shape):
                replaced[layer] = Int8Linear(layer)
            elif type(layer) is nn.Conv2d and is_multiplied(f"{path}.weight", layer.weight.shape) and is_plain(layer):
                replaced[layer] = Int8Conv2d(layer)
        if layer in replaced:
            network.set_submodule(path, replaced[layer])
    return network


def is_plain(layer: nn.Conv2d) -> bool:
    """Whether a convolution has one group, and zeros around its maps."""
    return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def rounded(x: Tensor, axes: tuple[int, ...], most: int) -> tuple[Tensor, Tensor]:
    """Round to whole numbers in -most-1..most, with one step for all numbers along `axes`.

    It is torchao's symmetric rounding, whose step is max|x| / (most + ½).

    Returns:
        The whole numbers as floats, and the steps, float32, with `axes` of length 1.
    """
    step = x.abs().amax(axes, keepdim=True).float().div_(most + 0.5).clamp_(min=torch.finfo(torch.float32).eps)
    return (x * step.reciprocal()).round_().clamp_(-most - 1, most), step


class _Int8Layer(nn.Module):
    """A layer with int8 weights, packed as oneDNN's kernels read them.

    Attributes:
        bias: that of the plain layer, or `None`.
        dtype: the number format of its inputs and outputs.
    """

    def __init__(self, plain: nn.Linear | nn.Conv2d, packed: Tensor, step: Tensor) -> None:
        super().__init__()
        self.bias, self.dtype = plain.bias, plain.weight.dtype
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.step: Tensor
        self.zero_points: Tensor
        self.register_buffer("step", step, persistent=False)
        self.register_buffer("zero_points", torch.zeros(len(step), dtype=torch.int32), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The rounded weights (out,in,…) in the layer's number format, unpacked at each call."""
        return (self._unpacked() * self.step).to(self.dtype)

    def _unpacked(self) -> Tensor:
        levels: Tensor = self.packed.to_dense()
        return levels

    def _finished(self, sums: Tensor, step: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output, from sums that are multiplied by the weights' steps but not yet by those of the input."""
        sums.mul_(step)  # apart from the bias: torch's operator for both rounds a tensor's last numbers differently
        if bias is not None:
            sums.add_(bias)
        return sums.to(self.dtype)


class Int8Linear(_Int8Layer):
    """A linear layer; each token of the input has a step of its own."""

    def __init__(self, plain: nn.Linear) -> None:
        levels, step = rounded(plain.weight, (1,), MOST_WEIGHT)
        super().__init__(plain, torch.ops.onednn.qlinear_prepack(levels.to(torch.int8), None), step)
        self.in_features, self.out_features = plain.in_features, plain.out_features

    def forward(self, x: Tensor) -> Tensor:
        levels, step = rounded(x.reshape(-1, self.in_features), (1,), MOST_INPUT)
        sums = torch.ops.onednn.qlinear_pointwise(
            levels.add_(ZERO).to(torch.uint8), 1.0, ZERO, self.packed, self.step.flatten(), self.zero_points, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return self._finished(sums, step, self.bias).view(*x.shape[:-1], self.out_features)

    def _unpacked(self) -> Tensor:
        return super()._unpacked().T


class Int8Conv2d(_Int8Layer):
    """A convolution; each map of the input has a step of its own, for all of its channels."""

    def __init__(self, plain: nn.Conv2d) -> None:
        levels, step = rounded(plain.weight, (1, 2, 3), MOST_WEIGHT)
        padding = [int(side) for side in plain.padding]
        stride, dilation = list(plain.stride), list(plain.dilation)
        packed = torch.ops.onednn.qconv_prepack(
            levels.to(torch.int8), step.flatten(), 1.0, ZERO, stride, padding, dilation, 1, None
        )
        super().__init__(plain, packed, step)
        self.padding, self.stride, self.dilation = padding, stride, dilation

    def forward(self, x: Tensor) -> Tensor:
        levels, step = rounded(x, (1, 2, 3), MOST_INPUT)
        sums = torch.ops.onednn.qconv2d_pointwise(
            levels.add_(ZERO).to(torch.uint8), 1.0, ZERO, self.packed, self.step.flatten(), self.zero_points, None,
            self.stride, self.padding, self.dilation, 1, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return self._finished(sums, step, None if self.bias is None else self.bias[:, None, None])
