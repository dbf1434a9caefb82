"""A CPU's layers compute what torch's compute, and a row alone as beside others."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from models.cpu_layers import (
    ByChannelGroupNorm,
    FloatGroupNorm,
    PrepackedConv2d,
    RowPaddedLinear,
    WholeVectorSiLU,
    has_onednn,
    with_cpu_layers,
)
from models.flop import flop_of

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def frozen(layer: nn.Module) -> nn.Module:
    return layer.eval().requires_grad_(False)


def swapped(network: nn.Module) -> nn.Module:
    return with_cpu_layers(copy.deepcopy(network))


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "groups"), [
    (3, 1, 1, 1, 1), (1, 1, 0, 1, 1), (3, 2, 1, 1, 1), (3, 2, 0, 1, 1),
    (3, 1, 2, 2, 1), (3, 1, 1, 1, 4), (4, 4, 0, 1, 1),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_convolution_and_its_gradient_are_those_of_torch(
    kernel: int, stride: int, padding: int, dilation: int, groups: int, dtype: torch.dtype
) -> None:
    plain = frozen(nn.Sequential(nn.Conv2d(8, 12, kernel, stride, padding, dilation, groups, dtype=dtype)))
    if not has_onednn(plain[0]):
        pytest.skip("this machine has no such convolutions")
    prepacked = swapped(plain)
    assert isinstance(prepacked[0], PrepackedConv2d)
    for size in ((11, 11), (14, 14), (7, 9), (8, 8)):  # weights are packed for the first
        found: list[tuple[Tensor, Tensor]] = []
        for network in (plain, prepacked):
            x = torch.randn(3, 8, *size, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
            output = network(x)
            assert torch.equal(output, network(x.detach()))
            found.append((output, torch.autograd.grad(output.square().sum(), x)[0]))
        for expected, got in zip(*found, strict=True):
            torch.testing.assert_close(got, expected, **({} if dtype == torch.bfloat16 else CLOSE))


@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 5), (2, 1, 5), (2, 6, 5)])
def test_a_linear_layer_is_that_of_torch(shape: tuple[int, ...]) -> None:
    plain = frozen(nn.Sequential(nn.Linear(5, 7)))
    padded = swapped(plain)
    assert isinstance(padded[0], RowPaddedLinear)
    found: list[tuple[Tensor, Tensor]] = []
    for network in (plain, padded):
        x = torch.ones(shape, requires_grad=True)
        output = network(x)
        found.append((output, torch.autograd.grad(output.square().sum(), x)[0]))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("groups", [2, 4, 12])
@pytest.mark.parametrize(("dtype", "mean"), [(torch.float32, 0), (torch.float32, 100), (torch.bfloat16, 7)])
@pytest.mark.parametrize("shape", [(3, 12, 14, 14), (1, 12, 14, 21), (2, 12, 196)], ids=["maps", "one map", "tokens"])
def test_group_normalization_is_that_of_torch(
    shape: tuple[int, ...], dtype: torch.dtype, mean: int, groups: int
) -> None:
    plain = nn.Sequential(nn.GroupNorm(groups, 12, eps=1e-3, dtype=dtype))
    dice = torch.Generator().manual_seed(0)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, generator=dice)
    swap = swapped(frozen(plain))
    assert type(swap[0]) is (FloatGroupNorm if dtype == torch.bfloat16 else ByChannelGroupNorm)
    x = (mean + torch.randn(*shape, generator=dice)).to(dtype)
    exact = copy.deepcopy(plain).double()(x.double())
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 3e-4, "atol": 3e-4}
    for strided in (x, x.movedim(1, -1).contiguous().movedim(-1, 1)):
        found = swap(strided)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, **tolerance)
        if dtype == torch.float32:
            assert found.stride()[:2] == (x[0].numel(), 1), "as convolutions like it, also of one map alone"
    if dtype == torch.float32:
        assert torch.equal(swap(x.requires_grad_()), plain(x)), "where a gradient is wanted, torch's own kernels"
        assert torch.equal(swap(x.detach()[:, :, :5]), plain(x.detach()[:, :, :5])), "of small maps too"


@pytest.mark.parametrize(
    "layer",
    [
        nn.GroupNorm(2, 18),
        nn.GroupNorm(2, 6, affine=False),
        nn.GroupNorm(2, 6).double(),
        nn.GroupNorm(2, 32).to(torch.bfloat16),
    ],
    ids=["a vector and more", "no weights", "float64", "whole vectors of bfloat16"],
)
def test_group_normalization_that_torch_does_well_or_alone_stays_as_it_is(layer: nn.GroupNorm) -> None:
    assert type(swapped(nn.Sequential(layer))[0]) is nn.GroupNorm


def test_a_layer_of_two_names_is_one_layer_still() -> None:
    network = nn.Module()
    network.first = network.second = frozen(nn.Conv2d(2, 2, 1))
    with_cpu_layers(network)
    assert network.first is network.second
    assert isinstance(network.first, PrepackedConv2d)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(2, 2, 1).double(),
    ],
    ids=["padding in words", "circular", "float64"],
)
def test_a_convolution_that_onednn_lacks_stays_as_it_is(layer: nn.Conv2d) -> None:
    assert not has_onednn(layer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 48, 7, 7), (5, 3, 5, 5), (5, 33), (5, 64)], ids=str)
def test_silu_is_that_of_torch_and_a_row_is_the_same_alone_as_beside_others(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    plain = nn.Sequential(nn.SiLU())
    whole = swapped(plain)
    assert isinstance(whole[0], WholeVectorSiLU)
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    for strided in (rows, rows.movedim(1, -1).contiguous().movedim(-1, 1)):
        x = strided.detach().requires_grad_()
        found = whole(x)
        [gradient] = torch.autograd.grad(found.square().sum(), x)
        [expected] = torch.autograd.grad(plain(x).square().sum(), x)
        torch.testing.assert_close(found, plain(x))
        torch.testing.assert_close(gradient, expected)
        assert found.stride() == plain(x).stride()
        for row in range(len(x)):
            assert torch.equal(whole(x[row : row + 1]), found[row : row + 1])


def test_floating_point_operations_are_counted_as_of_torchs_layers() -> None:
    plain = frozen(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(100, 3)))
    x = torch.zeros(4, 3, 9, 9).requires_grad_()
    counts = [
        flop_of(lambda network=network: network(x.view_as(x)).sum().backward()) for network in (plain, swapped(plain))
    ]
    assert counts[0] == counts[1] > 0


def test_attention_is_counted() -> None:
    query, key, value = (torch.zeros(2, 3, 16, 8, requires_grad=True) for _ in range(3))
    attended: list[Tensor] = []
    forward = flop_of(lambda: attended.append(nn.functional.scaled_dot_product_attention(query, key, value)))
    backward = flop_of(lambda: attended[0].sum().backward())
    product = 2 * (2 * 3) * 16 * 16 * 8
    assert forward == 2 * product
    assert backward == 5 * product  # the weights once more, and four gradients


def test_blocks_project_the_timestep_in_one_product_and_each_pass_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    shape: Any = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 8}
    blocks: Any = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    plain: Any = frozen(UNet2DModel(in_channels=1, out_channels=1, **shape, **blocks))
    ours: Any = swapped(plain)
    widths = [block.time_emb_proj.out_features for block in plain.modules() if isinstance(block, ResnetBlock2D)]
    forward, products = RowPaddedLinear.forward, list[int]()

    def noted(layer: RowPaddedLinear, x: Tensor) -> Tensor:
        products.append(layer.out_features)
        return forward(layer, x)

    monkeypatch.setattr(RowPaddedLinear, "forward", noted)
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for timestep in (10.0, 500.0, 10.0):
        times = torch.full((5,), timestep)
        products.clear()
        found = ours(x, times).sample
        assert products.count(sum(widths)) == 1
        assert products.count(widths[0]) == 0
        torch.testing.assert_close(found, plain(x, times).sample, **CLOSE)
        assert torch.equal(ours(x[2:3], times[:1]).sample[0], found[2])
