"""Layers for CPUs: batch-invariant rows, prepacked weights, and fast normalization of narrow groups.

For few rows torch uses different kernels than for many, which sum in another order: for one small feature map, and on
one thread for 1×1 convolutions on fewer than 16 maps, its own kernel instead of oneDNN's; for a matrix of fewer than
four rows, another of MKL's. The last numbers of a tensor, which do not fill a vector, also go through another
exponential than the rest. So a row alone would differ in its last bits from the same row in a larger batch.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Size, Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

FEWEST_ROWS = 4
"""With at least this many rows, MKL's matrix products sum every row in the same order."""
PACKED_FOR = 8
"""Rows that weights are packed for: a constant, so that their layout doesn't depend on the first batch."""
VECTOR = 8
"""Channels that torch normalizes at once, if a group has that many."""
WHOLE = 64
"""torch's loops process a multiple of this many numbers in whole vectors: two of AVX-512 at a time, with a margin."""
_CBWR_ALL, _CBWR_STRICT = -1, 0x10000  # from MKL's mkl_types.h
BY_CHANNEL = range(128, 1024)
"""Map sizes that torch normalizes group by group; smaller maps take no time, larger ones go by channel too."""


def sums_in_one_order() -> bool:
    """Whether MKL, if torch has it, sums a product's terms in the fixed order that `models/__init__.py` sets."""
    if not torch.backends.mkl.is_available():
        return True
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    mode = getattr(library, "mkl_serv_cbwr_get", None)  # behind the documented mkl_cbwr_get, which torch doesn't export
    return mode is None or bool(mode(_CBWR_ALL) & _CBWR_STRICT)


def with_cpu_layers(network: nn.Module) -> nn.Module:
    """Replace torch's layers in a frozen network by those of this module."""
    replaced: dict[nn.Module, nn.Module] = {}
    for path, layer in list(network.named_modules(remove_duplicate=False)):  # a layer may have two names
        if layer not in replaced:
            if type(layer) is nn.Linear:
                replaced[layer] = RowPaddedLinear(layer)
            elif type(layer) is nn.Conv2d and has_onednn(layer):
                replaced[layer] = PrepackedConv2d(layer)
            elif type(layer) is nn.GroupNorm and is_slow_in_bfloat16(layer):
                replaced[layer] = FloatGroupNorm(layer)
            elif type(layer) is nn.GroupNorm and has_narrow_groups(layer):
                replaced[layer] = ByChannelGroupNorm(layer)
            elif type(layer) is nn.SiLU:
                replaced[layer] = WholeVectorSiLU()
        if layer in replaced:
            network.set_submodule(path, replaced[layer])
    _share_projections(network)
    return network


def _share_projections(network: nn.Module) -> None:
    """Have the residual blocks of a U-Net project the timestep's embedding, which all of them read, in one product."""
    by_width: dict[int, list[ResnetBlock2D]] = {}
    for block in network.modules():
        if isinstance(block, ResnetBlock2D) and type(block.nonlinearity) is WholeVectorSiLU:
            projection = block.time_emb_proj
            if type(projection) is RowPaddedLinear and type(projection.weight) is nn.Parameter:  # and not quantized
                by_width.setdefault(projection.in_features, []).append(block)
    for blocks in by_width.values():
        activation, joint = _SiLUOnce(), _JointProjection([block.time_emb_proj for block in blocks])
        for number, block in enumerate(blocks):
            block.nonlinearity = activation
            block.time_emb_proj = _PartOfProjection(joint, number)


def strided_as_in_a_batch(x: Tensor) -> Tensor:
    """Set the batch stride of dense maps (B,C,…) to that of a larger batch, also for a batch of one.

    Any stride is valid for a batch of one, but some make torch assume another memory format and choose other kernels
    for the following layers: the row would then differ in its last bits from the same row in a larger batch.
    """
    return x.as_strided(x.shape, (x[0].numel(), *x.stride()[1:]))


def has_onednn(layer: nn.Conv2d) -> bool:
    """Whether oneDNN is available and supports this convolution in its number format on this machine."""
    if not torch.backends.mkldnn.is_available() or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return False
    has_bfloat16: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return layer.weight.dtype == torch.float32 or (layer.weight.dtype == torch.bfloat16 and has_bfloat16)


def has_narrow_groups(layer: nn.GroupNorm) -> bool:
    """Whether the layer's groups don't fill a vector, and it has weights in float32."""
    narrow = layer.num_channels // layer.num_groups < VECTOR
    return narrow and layer.affine and layer.weight.dtype == torch.float32


def is_slow_in_bfloat16(layer: nn.GroupNorm) -> bool:
    """Whether the layer has weights in bfloat16, and groups that torch normalizes number by number."""
    return layer.affine and layer.weight.dtype == torch.bfloat16 and layer.num_channels // layer.num_groups % 16 != 0


class RowPaddedLinear(nn.Linear):
    """A linear layer that gives few rows the same bits as many, by padding them."""

    def __init__(self, plain: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[:-1].numel()
        flat = x.reshape(rows, self.in_features)  # of tokens that aren't adjacent torch would copy the weights instead
        if rows >= FEWEST_ROWS:
            return super().forward(flat).view(*x.shape[:-1], self.out_features)
        padded = functional.pad(flat, (0, 0, 0, FEWEST_ROWS - rows))
        return super().forward(padded)[:rows].reshape(*x.shape[:-1], self.out_features)


class WholeVectorSiLU(nn.SiLU):
    """SiLU in whole vectors only, so that a row is computed in the same way at the end of a batch as within it."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or x[0].numel() % WHOLE == 0:
            return super().forward(x)
        in_order = x.movedim(1, -1) if x.dim() == 4 and x.stride(1) == 1 else x
        flat = in_order.reshape(-1)
        padded = super().forward(functional.pad(flat, (0, -len(flat) % WHOLE)))[: len(flat)].view(in_order.shape)
        return padded.movedim(-1, 1) if in_order is not x else padded


class _Latest(threading.local):
    """What a layer was last given on this thread, and what it made of it."""

    x: Tensor | None = None
    y: Tensor


class _SiLUOnce(WholeVectorSiLU):
    """SiLU that several layers share: of an embedding (B,width) that each of them passes it, once."""

    def __init__(self) -> None:
        super().__init__()
        self._latest = _Latest()

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.requires_grad:
            return super().forward(x)
        if self._latest.x is not x:
            self._latest.x, self._latest.y = x, super().forward(x)
        return self._latest.y


class _JointProjection:
    """Linear layers that read the same tensor, as one whose product is made when the first of them is called."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.starts = list(itertools.accumulate((layer.out_features for layer in layers), initial=0))
        with torch.device("meta"):
            self.whole = RowPaddedLinear(nn.Linear(layers[0].in_features, self.starts[-1]))
        self.whole.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
        self.whole.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False)
        self._latest = _Latest()

    def __call__(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            return self.whole.forward(x)
        if self._latest.x is not x:
            self._latest.x, self._latest.y = x, self.whole.forward(x)
        return self._latest.y


class _PartOfProjection(nn.Linear):
    """One of the layers of a joint projection."""

    def __init__(self, joint: _JointProjection, number: int) -> None:
        nn.Module.__init__(self)
        self._joint = joint
        self._part = slice(*joint.starts[number : number + 2])
        self.in_features, self.out_features = joint.whole.in_features, self._part.stop - self._part.start
        self.weight = nn.Parameter(joint.whole.weight[self._part], requires_grad=False)
        self.bias = nn.Parameter(joint.whole.bias[self._part], requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._joint(x)[..., self._part]


class _GroupNorm(nn.GroupNorm):
    """Group normalization with the weights of a layer of torch's."""

    def __init__(self, plain: nn.GroupNorm) -> None:
        nn.Module.__init__(self)
        self.num_groups, self.num_channels = plain.num_groups, plain.num_channels
        self.eps, self.affine = plain.eps, plain.affine
        self.weight, self.bias = plain.weight, plain.bias


class FloatGroupNorm(_GroupNorm):
    """Group normalization of bfloat16 in float32, which torch's own sums are in too, so few results differ at all.

    In bfloat16 torch takes several times as long for small maps (`python -m benchmarks.layers --bfloat16`).
    """

    def __init__(self, plain: nn.GroupNorm) -> None:
        super().__init__(plain)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", plain.weight.float(), persistent=False)
        self.register_buffer("shift", plain.bias.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:].numel() >= BY_CHANNEL.stop:
            return super().forward(x)
        normalized = functional.group_norm(x.float(), self.num_groups, self.scale, self.shift, self.eps)
        return strided_as_in_a_batch(normalized).to(x.dtype)


class ByChannelGroupNorm(_GroupNorm):
    """Group normalization (Wu & He 2018) over channels adjacent in memory, the layout that oneDNN produces.

    torch iterates by group, only a few numbers at a time if groups are narrow (`python -m benchmarks.layers`). Inputs
    with a gradient, and maps of other sizes (`BY_CHANNEL`), go to torch's layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:].numel() not in BY_CHANNEL or (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)
        rows = x.flatten(2).transpose(1, 2).contiguous()  # (B,HW,C)
        batch, positions, channels = rows.shape
        by_group, count = (batch, self.num_groups, -1), positions * channels // self.num_groups

        def group_mean(values: Tensor) -> Tensor:
            """(B,HW,C) → (B,G,1)."""
            return values.sum(1).view(by_group).sum(2, keepdim=True).mul_(1 / count)

        def per_channel(values: Tensor) -> Tensor:
            """(B,G,1 or C/G) → (B,1,C)."""
            return values.expand(batch, self.num_groups, channels // self.num_groups).reshape(batch, 1, channels)

        centred = rows - per_channel(group_mean(rows))
        inverse = group_mean(centred * centred).add_(self.eps).rsqrt_()
        scale = self.weight.view(self.num_groups, -1) * inverse
        normalized = torch.addcmul(self.bias, centred, per_channel(scale))
        return strided_as_in_a_batch(normalized.transpose(1, 2).view(x.shape))


class PrepackedConv2d(nn.Module):
    """A frozen oneDNN convolution whose weights are prepacked in the layout that oneDNN's kernels read.

    They are packed at the first call, because the layout depends on the map's height and width; maps of other sizes are
    convolved correctly too, only more slowly.
    """

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = plain.weight, plain.bias
        self.padding = [int(side) for side in plain.padding]
        self.stride, self.dilation = list(plain.stride), list(plain.dilation)
        self.groups = plain.groups
        self._transposed: Tensor | None = None
        self._packing = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        if not self.weight.is_mkldnn:
            self._pack(x.shape)
        if torch.is_grad_enabled() and x.requires_grad:
            convolved: Tensor = _Convolution.apply(x, self)  # type: ignore[no-untyped-call]
            return convolved
        return self.convolved(x)

    def convolved(self, x: Tensor) -> Tensor:
        """Convolve maps (B,C,H,W), without a gradient."""
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups, "none", [], ""
        )
        return result

    def input_gradient(self, gradient: Tensor, size: Size) -> Tensor:
        """The gradient with respect to the input of `size`, from that with respect to the output.

        It is a transposed convolution (Dumoulin & Visin 2016, section 4).
        """
        rest = [  # rows and columns at the end that the stride skips
            (before + 2 * padding - dilation * (kernel - 1) - 1) % stride
            for before, padding, dilation, kernel, stride in zip(
                size[2:], self.padding, self.dilation, self.weight.shape[2:], self.stride, strict=True
            )
        ]
        if self._transposed is None:  # no lock: lanes that race here compute the same weights
            self._transposed = torch.ops.mkldnn._reorder_convolution_transpose_weight(
                self.weight.to_dense(), self.padding, rest, self.stride, self.dilation, self.groups,
                [PACKED_FOR, *gradient.shape[1:]],
            )  # fmt: skip
        result: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            gradient,
            self._transposed,
            None,
            self.padding,
            rest,
            self.stride,
            self.dilation,
            self.groups,
            "none",
            [],
            "",
        )
        return result

    def _pack(self, shape: Size) -> None:
        with self._packing:
            if not self.weight.is_mkldnn:  # another lane may have packed it meanwhile
                packed = torch.ops.mkldnn._reorder_convolution_weight(
                    self.weight, self.padding, self.stride, self.dilation, self.groups, [PACKED_FOR, *shape[1:]]
                )
                self.weight = nn.Parameter(packed, requires_grad=False)


class _Convolution(torch.autograd.Function):
    """Adds a gradient for the input, which oneDNN's operators lack."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PrepackedConv2d) -> Tensor:
        ctx.layer, ctx.size = layer, x.shape
        return layer.convolved(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.input_gradient(gradient, ctx.size), None
