"""Weights as int8, against torchao on diffusers' own pipelines; and weights that wait in the host's memory."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DModel
from diffusers.hooks.group_offloading import ModuleGroup
from torch import Tensor, nn
from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig, quantize_

from models.calibration import calibration_key, load_networks
from models.calibration.result import fixed_calibration
from models.denoisers import load_denoiser
from models.engine import Engine
from models.memory import check_fits, weights_of
from models.networks import AdmUNet
from models.pack import InvalidPack, open_pack
from models.parity import stand_ins
from models.precision import FLOAT32, Precision
from models.spec import Guidance, SampleSpec
from models.weights import is_quantized
from tests.science.test_families import (
    SCALE,
    SIDE,
    STEPS,
    differ_by_more_than_rounding,
    flux,
    noise_for,
    saved,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
)
from workers.drawing.cards import card_of

CPU, CUDA, INT8, OFFLOADED = (
    torch.device("cpu"),
    torch.device("cuda:0"),
    Precision(int8=True),
    Precision(offloaded=True),
)
SD3 = partial(stable_diffusion_3, t5=True)
SPEC = SampleSpec(
    pack="pack",
    prompt="a red cat",
    guidance=Guidance(free_scale=SCALE),
    steps=STEPS,
    seed=7,
    clip=False,
    profile="diffusers",
)
NEAR = 2
"""Grey levels. Weights spread evenly over ±a are rounded to steps of a/127, so the error of a layer's output is
(a/127/√12) / (a/√3) = 0.4 % of its size: one level of 256, and another in rounding the picture."""


def networks_of(pipeline: Any) -> list[nn.Module]:
    """The networks whose linear layers become int8."""
    parts = pipeline.components.values()
    return [part for part in parts if isinstance(part, nn.Module) and not isinstance(part, AutoencoderKL)]


def linear_layers(pipeline: Any) -> Iterator[nn.Linear]:
    for network in networks_of(pipeline):
        yield from (layer for layer in network.modules() if isinstance(layer, nn.Linear))


def drawn_in(folder: Path, sampler: str, **options: Any) -> tuple[np.ndarray, np.ndarray, Any]:
    """A picture alone, the same among others, and the card."""
    spec = replace(SPEC, sampler=sampler)
    with Engine([str(folder)], precision="float32", calibrate=fixed_calibration, **options) as engine:
        [alone] = engine.generate([spec])
        among = engine.generate([replace(spec, seed=seed) for seed in (1, 2, 7, 3, 4)])[2]
        return alone, among, card_of(engine.packs["pack"])


@pytest.mark.parametrize(("build", "sampler"), [(stable_diffusion, "ddim"), (SD3, "flow_euler")], ids=["UNet", "SD3"])
def test_int8_draws_nearly_the_same_with_less_memory(build: Callable[[], Any], sampler: str, tmp_path: Path) -> None:
    _, folder = saved(build, tmp_path)
    exact, _, of_exact = drawn_in(folder, sampler)
    alone, among, card = drawn_in(folder, sampler, quantize="int8")
    assert np.array_equal(alone, among)
    assert np.abs(alone.astype(int) - exact.astype(int)).max() <= NEAR
    assert card.precision == "float32, int8 weights"
    assert card.drawn_by != of_exact.drawn_by
    before, after = of_exact.memory.weights, card.memory.weights
    assert after["autoencoder"] == before["autoencoder"]
    for part in ("denoiser", "text encoders"):
        assert after[part].parameters == before[part].parameters
        assert after[part].bytes < 0.8 * before[part].bytes


@pytest.mark.parametrize(("build", "sampler"), [(stable_diffusion, "ddim"), (SD3, "flow_euler")], ids=["UNet", "SD3"])
def test_int8_is_what_torchao_makes_of_the_pipeline(build: Callable[[], Any], sampler: str, tmp_path: Path) -> None:
    def coarse() -> Any:
        pipeline = build()
        for layer in linear_layers(pipeline):
            layer.weight.data[:, 0] *= 20  # as trained networks have: the others' levels are far apart, and it shows
        return pipeline

    pipeline, folder = saved(coarse, tmp_path)
    mine, _, _ = drawn_in(folder, sampler, quantize="int8")

    @torch.no_grad()
    def expected() -> np.ndarray:
        asked = {"guidance_scale": SCALE, "latents": noise_for(16, 16), "height": 16, "width": 16, "output_type": "np"}
        picture: np.ndarray = pipeline("a red cat", num_inference_steps=STEPS, **asked).images[0]
        return picture

    assert differ_by_more_than_rounding(mine, expected())
    for network in networks_of(pipeline):
        quantize_(network, Int8WeightOnlyConfig(set_inductor_config=False))
    assert not differ_by_more_than_rounding(mine, expected())


def test_which_weights_become_int8_is_told_by_their_names_and_shapes() -> None:
    flux_pipeline = flux(distilled=True, shifts=True)
    pipelines = (stable_diffusion(), stable_diffusion_xl(), SD3(), flux_pipeline)
    networks = [network for pipeline in pipelines for network in networks_of(pipeline)]
    dit = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2, "in_channels": 4, "out_channels": 8}
    networks += [
        DiTTransformer2DModel(sample_size=SIDE, num_embeds_ada_norm=3, norm_type="ada_norm_zero", **dit),
        UNet2DModel(sample_size=16, block_out_channels=(32,) * 4, num_class_embeds=3, norm_num_groups=8),
        AdmUNet(**stand_ins.unet_config("legacy order")),
    ]
    for network in networks:
        linear = {f"{path}.weight" for path, layer in network.named_modules() if isinstance(layer, nn.Linear)}
        named = {name for name, weight in network.named_parameters() if is_quantized(name, weight.shape)}
        assert linear, type(network)
        assert named == linear, type(network)


def test_the_need_is_known_before_weights_are_read_and_encoders_are_shared_in_their_format_only(tmp_path: Path) -> None:
    _, folder = saved(stable_diffusion, tmp_path)
    pack = open_pack(str(folder))
    exact, mine = load_denoiser(pack, CPU, FLOAT32), load_denoiser(pack, CPU, INT8)
    assert mine.autoencoder.network is exact.autoencoder.network
    assert mine.encoders[0].network is not exact.encoders[0].network
    needed = weights_of(pack, INT8, FLOAT32)
    for part, network in (("denoiser", mine.network), ("text encoders", mine.encoders[0].network)):
        assert needed[part].bytes == sum(map(bytes_of, network.parameters()))
        assert not any(isinstance(weight, Int8Tensor) for weight in mine.autoencoder.network.parameters())


def bytes_of(weight: Tensor) -> int:
    if isinstance(weight, Int8Tensor):
        return sum(part.nbytes for part in (weight.qdata, weight.scale, weight.zero_point))
    return weight.nbytes


@pytest.mark.parametrize("build", [stable_diffusion, SD3], ids=["UNet", "SD3"])
def test_offloaded_layers_hold_their_weights_only_while_they_run(
    build: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, where copying is no copying: that the weights are on a device is told by diffusers' groups."""
    _, folder = saved(build, tmp_path)
    pack = open_pack(str(folder))
    there: dict[ModuleGroup, int] = {}
    groups, most = set[int](), 0

    def tensors(group: ModuleGroup) -> list[Tensor]:
        of_modules = [each for module in group.modules for each in (*module.parameters(), *module.buffers())]
        return [*of_modules, *group.parameters, *group.buffers]

    def onload(group: ModuleGroup) -> None:
        nonlocal most
        there[group] = sum(each.nbytes for each in tensors(group))
        most = max(most, sum(there.values()))

    def offload(group: ModuleGroup) -> None:
        there.pop(group, None)
        groups.update(map(id, tensors(group)))

    exact = load_denoiser(pack, CPU, FLOAT32)
    monkeypatch.setattr(ModuleGroup, "onload_", onload)
    monkeypatch.setattr(ModuleGroup, "offload_", offload)
    mine = load_denoiser(pack, CPU, OFFLOADED)
    encoders = mine.encoders if build is stable_diffusion else [*mine.clips, mine.t5]
    for network in (mine.network, mine.autoencoder.network, *(encoder.network for encoder in encoders)):
        assert groups >= set(map(id, network.parameters())), type(network)

    conditioning, expected = mine.conditioning(SPEC)[0], exact.conditioning(SPEC)[0]
    x = torch.randn(2, *exact.latent_shape, generator=torch.Generator().manual_seed(0))
    batch = x, torch.tensor([1.0, 900.0]), {name: torch.stack([each] * 2) for name, each in expected.items()}
    assert all(torch.equal(conditioning[name], expected[name]) for name in expected)
    assert torch.equal(mine.forward(*batch), exact.forward(*batch))
    assert torch.equal(mine.decode(x), exact.decode(x))
    assert torch.equal(mine.encode(exact.decode(x)), exact.encode(exact.decode(x)))
    assert there == {}
    needed = sum(each.bytes for each in weights_of(pack, OFFLOADED, FLOAT32).values())
    assert 0 < most <= needed < 0.5 * sum(each.bytes for each in weights_of(pack, FLOAT32, FLOAT32).values())


def test_a_refusal_names_the_options_that_would_make_it_fit_with_their_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = saved(SD3, tmp_path)
    pack = open_pack(str(folder))
    gc.collect()

    def total(precision: Precision) -> int:
        return sum(each.bytes for each in weights_of(pack, precision, FLOAT32).values())

    def refusal(device: torch.device, precision: Precision = FLOAT32, **left: int) -> str:
        monkeypatch.setattr("models.memory.needs.available", lambda place: left[place.type])
        with pytest.raises(InvalidPack) as refused:
            check_fits(pack, device, precision, FLOAT32)
        return str(refused.value).partition(" left; ")[2]

    def shown(precision: Precision) -> str:
        return f"({total(precision) / 1e6:.1f} MB)"

    half = Precision(dtype="bfloat16", encoders="bfloat16")
    to_half = "set CYNOSURE_WORKER_PRECISION and CYNOSURE_WORKER_ENCODER_PRECISION to bfloat16"
    remedies = [
        f"{to_half} {shown(half)}",
        f"use --quantize int8 {shown(INT8)}",
        f"use --offload {shown(OFFLOADED)}",
    ]
    fewer = "serve fewer models on it"
    assert refusal(CUDA, cuda=total(FLOAT32) - 1, cpu=10**9) == " or ".join([fewer, *remedies])
    assert refusal(CUDA, cuda=total(OFFLOADED), cpu=10**9) == " or ".join([fewer, remedies[2]])
    together = replace(half, int8=True, offloaded=True)
    assert refusal(CUDA, cuda=total(together), cpu=10**9) == (
        f"{fewer} or {to_half} and use --quantize int8 and use --offload {shown(together)}"
    )
    of_host = refusal(CUDA, OFFLOADED, cuda=10**9, cpu=total(FLOAT32) - 1)
    assert of_host.startswith(f"{fewer} or {remedies[0]}"), "the weights wait in the host's memory, all of them"
    assert refusal(CPU, cpu=total(half)) == f"{fewer} or {remedies[0]}", "--offload is for CUDA"


def test_on_a_cpu_the_need_of_int8_counts_each_part_as_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = saved(stable_diffusion, tmp_path)
    pack = open_pack(str(folder))
    gc.collect()
    exact, int8 = weights_of(pack, FLOAT32, FLOAT32), weights_of(pack, INT8, FLOAT32)
    peak = int8["denoiser"].bytes + int8["autoencoder"].bytes + exact["text encoders"].bytes
    assert peak > exact["denoiser"].bytes
    monkeypatch.setattr("models.memory.needs.available", lambda device: peak)
    check_fits(pack, CPU, INT8, FLOAT32)
    monkeypatch.setattr("models.memory.needs.available", lambda device: peak - 1)
    with pytest.raises(InvalidPack, match=r"needs .* for its weights while they are read \("):
        check_fits(pack, CPU, INT8, FLOAT32)


def test_an_option_that_cannot_work_here_is_refused_in_a_line(
    small_pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = open_pack(str(small_pack))
    networks = load_networks(pack, CPU, precision="float32", quantize="int8")
    classifier = networks.by_rule.classifier
    assert (str(networks.by_rule.denoiser.precision), classifier and str(classifier.precision)) == (
        "float32, int8 weights",
        "float32",
    )
    denoiser = replace(networks.by_rule.denoiser, precision=replace(INT8, offloaded=True))
    offloaded = replace(networks.by_rule, denoiser=denoiser)
    assert calibration_key(pack, CPU, offloaded) != calibration_key(pack, CPU, networks.by_rule)
    with pytest.raises(InvalidPack, match=r"^--offload is for CUDA: the weights on cpu are in the host's memory"):
        load_networks(pack, CPU, offloaded=True)
    with pytest.raises(InvalidPack, match=r"^--quantize int8 is for networks that aren't compiled"):
        load_networks(pack, CPU, quantize="int8", compiled=True)
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(InvalidPack, match=r"needs torchao, which is not installed: pip install 'cynosure\[memory\]'$"):
        load_networks(pack, CPU, quantize="int8")
