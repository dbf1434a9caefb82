"""Layers that multiply int8 by int8, against torchao's; their rows alone and in batches; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchao.quantization import Int8Tensor, PerRow
from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs

from models.calibration import load_networks
from models.calibration.result import fixed_calibration
from models.engine import Engine
from models.flop import flop_of
from models.memory import weights_of
from models.pack import InvalidPack, open_pack
from models.precision import FLOAT32, Precision
from models.spec import Guidance, SampleSpec
from models.weights import has_int8_products, products, with_int8_products
from models.weights.products import Int8Conv2d, Int8Linear

pytestmark = pytest.mark.skipif(not has_int8_products(), reason="this build of torch has no int8 of oneDNN")
CPU = torch.device("cpu")
NEAR = 1.0
"""Grey levels, on average. Weights spread evenly over ±a are rounded to steps of a/63, so the error of a layer's output
is (a/63/√12) / (a/√3) = 0.8 % of its size: two levels of 256 at most."""


def linear(inputs: int = 80, outputs: int = 96, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


def convolution(**options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(80, 96, **{"kernel_size": 3, "padding": 1, **options}).requires_grad_(False)


def spread(*shape: int) -> Tensor:
    """Random numbers, of another size in each row."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    return x * torch.logspace(-3, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))


@pytest.fixture
def all_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small stand-ins' layers count as wide, too."""
    monkeypatch.setattr(products, "NARROW", 4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 80), (1, 80), (3, 5, 80)])
def test_a_linear_layer_is_torchaos(shape: tuple[int, ...], bias: bool) -> None:
    plain, x = linear(bias=bias), spread(*shape)
    of_inputs = QuantizeTensorToInt8Kwargs(granularity=PerRow())
    theirs = Int8Tensor.from_hp(plain.weight, PerRow(), act_quant_kwargs=of_inputs, reduce_range=True)
    mine = Int8Linear(plain)
    assert torch.equal(mine.weight, theirs.dequantize())
    torch.testing.assert_close(mine(x), functional.linear(x, theirs, plain.bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"stride": 2}, {"kernel_size": 1, "padding": 0}, {"padding": 2, "dilation": 2}],
    ids=str,
)
def test_a_convolution_is_that_of_what_torchao_rounds_to(options: dict[str, Any]) -> None:
    plain, x = convolution(**options), spread(3, 80, 7, 9)
    weights = Int8Tensor.from_hp(plain.weight.flatten(1), PerRow(), reduce_range=True).dequantize()
    inputs = Int8Tensor.from_hp(x.flatten(1), PerRow()).dequantize()
    mine = Int8Conv2d(plain)
    assert torch.equal(mine.weight, weights.view(plain.weight.shape))
    expected = functional.conv2d(
        inputs.view(x.shape).double(), mine.weight.double(), None if plain.bias is None else plain.bias.double(),
        plain.stride, plain.padding, plain.dilation,
    ).float()  # fmt: skip
    torch.testing.assert_close(mine(x), expected, rtol=1e-5, atol=1e-4)
    assert flop_of(lambda: mine(x)) == flop_of(lambda: plain(x))


@pytest.mark.parametrize("weight", [1.0, -1.0])
@pytest.mark.parametrize("number", [1.0, -1.0])
def test_no_sum_of_the_largest_products_is_cut_off(weight: float, number: float) -> None:
    plain, maps = linear(bias=False), convolution(bias=False, padding=0)
    for layer in (plain, maps):
        layer.weight.fill_(weight)
    product = float(Int8Linear(plain).weight[0, 0]) * number
    for found, terms in (
        (Int8Linear(plain)(torch.full((4, 80), number)), 80),
        (Int8Conv2d(maps)(torch.full((2, 80, 3, 3), number)), 9 * 80),
    ):
        torch.testing.assert_close(found, torch.full_like(found, terms * product), rtol=0.5 / 127, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("plain", "mine", "shape"),
    [(linear, Int8Linear, (80,)), (linear, Int8Linear, (5, 80)), (convolution, Int8Conv2d, (80, 7, 7))],
    ids=["one token", "tokens", "maps"],
)
def test_a_row_has_the_same_bits_alone_and_in_any_batch(
    plain: Callable[[], Any], mine: type[nn.Module], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    layer: nn.Module = mine(plain().to(dtype))
    x = spread(17, *shape).to(dtype)
    alone = torch.cat([layer(x[row : row + 1]) for row in range(17)])
    assert alone.dtype == dtype
    for size in (2, 3, 4, 8, 16, 17):
        batch = layer(x[-size:])
        assert torch.equal(batch, alone[-size:])
        assert torch.equal(layer(x[-size:].flip(0)), batch.flip(0))


def test_rows_of_zeros_put_out_the_bias() -> None:
    plain = linear()
    assert torch.equal(Int8Linear(plain)(torch.zeros(2, 80)), plain.bias.expand(2, -1))


def test_first_last_and_embedding_layers_stay_as_they_are() -> None:
    network = nn.ModuleDict(
        {
            "conv_in": nn.Conv2d(4, 96, 3),
            "time_embedding": nn.ModuleDict({"linear_1": linear()}),
            "grouped": convolution(groups=2),
            "around": convolution(padding_mode="circular"),
            "to_q": linear(),
            "conv": convolution(),
            "conv_out": nn.Conv2d(96, 4, 3),
        }
    ).requires_grad_(False)
    network["again"] = network["to_q"]
    with_int8_products(network)
    assert {name: type(layer) for name, layer in network.items() if isinstance(layer, (Int8Linear, Int8Conv2d))} == {
        "to_q": Int8Linear,
        "conv": Int8Conv2d,
        "again": Int8Linear,
    }
    assert network["again"] is network["to_q"]


@pytest.mark.usefixtures("all_widths")
def test_int8_draws_nearly_what_float32_draws_alone_and_among_others(small_pack: Path) -> None:
    specs = [
        SampleSpec(pack="fashion", label=seed, guidance=Guidance(free_scale=2.0), steps=4, seed=seed)
        for seed in range(5)
    ]
    drawn: dict[str, list[np.ndarray]] = {}
    for precision in ("float32", "int8"):
        with Engine([str(small_pack)], precision=precision, calibrate=fixed_calibration) as engine:
            drawn[precision] = engine.generate(specs)
            assert all(np.array_equal(engine.generate([spec])[0], drawn[precision][spec.seed]) for spec in specs[:2])
            formats = engine.packs["fashion"].calibration
    assert str(formats.denoiser.precision).endswith(", int8 products")
    assert formats.classifier is not None
    assert str(formats.classifier.precision) == "float32"
    apart = np.abs(np.stack(drawn["int8"]).astype(int) - np.stack(drawn["float32"]))
    assert 0 < apart.mean() < NEAR


@pytest.mark.usefixtures("all_widths")
def test_the_need_for_memory_is_known_before_weights_are_read(small_pack: Path) -> None:
    pack = open_pack(str(small_pack))
    network = load_networks(pack, CPU, precision="int8").denoiser.network  # type: ignore[attr-defined]
    steps = [each for name, each in network.named_buffers() if name.endswith((".step", ".zero_points"))]
    assert steps
    needed = weights_of(pack, Precision(int8_products=True), FLOAT32)["denoiser"]
    assert needed.bytes == sum(each.nbytes for each in (*network.parameters(), *steps))
    assert needed.parameters == sum(each.numel() for each in network.parameters())


def test_what_int8_cannot_be_combined_with_is_refused_by_name(
    small_pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = open_pack(str(small_pack))
    with pytest.raises(InvalidPack, match=r"^precision int8 is for CPUs; cuda has .* --quantize int8$"):
        load_networks(pack, torch.device("cuda"), precision="int8")
    with pytest.raises(InvalidPack, match=r"^precision int8 is for networks that aren't compiled"):
        load_networks(pack, CPU, precision="int8", compiled=True)
    with pytest.raises(InvalidPack, match=r"leave out --quantize int8$"):
        load_networks(pack, CPU, precision="int8", quantize="int8")
    monkeypatch.setattr("models.calibration.networks.has_int8_products", lambda: False)
    with pytest.raises(InvalidPack, match=r"use float32 or bfloat16$"):
        load_networks(pack, CPU, precision="int8")
