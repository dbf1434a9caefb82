"""Step caching against diffusers' networks, which run whole and are made to hand up again what they did before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DModel,
)
from torch import Tensor, nn

from models.caching import Kept, keeping, make_reusable, reusing
from models.calibration.result import fixed_calibration
from models.engine import Engine, work
from models.engine.sample import Sample
from models.networks import AdmUNet
from models.noise import draw_noise
from models.spec import Guidance, InvalidSpec, SampleSpec, StepCache
from tests.science.test_families import (
    SCALE,
    SIZES,
    STEPS,
    compare_at_every_size,
    differ_by_more_than_rounding,
    drawn_at,
    saved,
    stable_diffusion,
    stable_diffusion_3,
)

CACHE = StepCache(3, 0.8)
REUSING = (1, 2, 4)  # of STEPS evaluations


class Witness:
    """Has a network of diffusers find in its last deep block what it found at the evaluation that was last in full.

    All of it runs at every evaluation; only what the block puts out is replaced.
    """

    def __init__(self, network: Any) -> None:
        self.evaluation = -1
        self.found: Any = None
        self.before: tuple[Tensor, ...] = ()
        network.register_forward_pre_hook(self.count)
        if hasattr(network, "up_blocks"):
            network.up_blocks[-2].register_forward_hook(self.hand_up)
        else:
            network.transformer_blocks[1].register_forward_pre_hook(self.note, with_kwargs=True)
            network.transformer_blocks[-2].register_forward_hook(self.add)

    @property
    def reuses(self) -> bool:
        return self.evaluation % STEPS in REUSING

    def count(self, *_: Any) -> None:
        self.evaluation += 1

    def hand_up(self, block: nn.Module, given: Any, output: Tensor) -> Tensor:
        self.found = self.found if self.reuses else output
        return self.found

    def note(self, block: nn.Module, given: Any, named: dict[str, Any]) -> None:
        self.before = (named["encoder_hidden_states"], named["hidden_states"])

    def add(self, block: nn.Module, given: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not self.reuses:
            self.found = [after - before for after, before in zip(output, self.before, strict=True)]
        return tuple(before + added for before, added in zip(self.before, self.found, strict=True))


def deep_stable_diffusion_3() -> Any:
    pipeline = stable_diffusion_3(t5=False)
    torch.manual_seed(11)
    pipeline.transformer = SD3Transformer2DModel.from_config(pipeline.transformer.config, num_layers=4).eval()
    return pipeline


@pytest.mark.parametrize(
    ("build", "more"), [(stable_diffusion, {}), (deep_stable_diffusion_3, {"sampler": "flow_euler"})]
)
def test_prompted_pictures_are_those_of_networks_whose_deep_blocks_find_the_same_again(
    build: Callable[[], Any], more: dict[str, Any], tmp_path: Path
) -> None:
    pipeline, pack = saved(build, tmp_path)
    asked = {"prompt": "a red cat", "guidance": Guidance(free_scale=SCALE), **more}
    plain, cached = drawn_at(SIZES, pack, **asked), drawn_at(SIZES, pack, cache=CACHE, **asked)
    assert all((one != other).any() for one, other in zip(plain, cached, strict=True))
    Witness(pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer)
    compare_at_every_size(pipeline, cached)


def test_a_picture_of_pixels_is_that_of_a_network_whose_deep_blocks_find_the_same_again(tmp_path: Path) -> None:
    torch.manual_seed(6)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 32, 32),
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
    ).eval()
    pipeline, pack = saved(lambda: DDIMPipeline(unet, DDIMScheduler()), tmp_path)
    Witness(pipeline.unet)
    noise = draw_noise(7, 0, 0, (3, 16, 16))[None]
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(diffusers.pipelines.ddim.pipeline_ddim, "randn_tensor", lambda *args, **kwargs: noise.clone())
        expected = pipeline(num_inference_steps=STEPS, output_type="np").images[0]
    spec = SampleSpec(pack="pack", steps=STEPS, seed=7, profile="diffusers", guidance=Guidance(conditional=False))
    with Engine([str(pack)], precision="float32", calibrate=fixed_calibration) as engine:
        plain, cached = engine.generate([spec, replace(spec, cache=CACHE)])
    assert not differ_by_more_than_rounding(cached, expected)
    assert (plain != cached).any()


def adm() -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    network = AdmUNet(
        image_size=16, model_channels=32, num_res_blocks=1, channel_mult=(1, 2, 2), attention_resolutions=(8,)
    )
    return network, lambda network, x: network(x[:, :3], torch.full((2,), 5.0), torch.arange(2))


def dit() -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    network = DiTTransformer2DModel(
        sample_size=16,
        num_layers=4,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        in_channels=4,
        num_embeds_ada_norm=10,
        norm_type="ada_norm_zero",
    )
    return network, lambda network, x: network(x, torch.full((2,), 5.0), class_labels=torch.arange(2)).sample


def flux() -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    network = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    states, pooled, ids = torch.ones(2, 7, 32), torch.ones(2, 32), torch.zeros(64, 3)

    def call(network: nn.Module, x: Tensor) -> Tensor:
        tokens = x.reshape(2, 64, 16)
        return network(tokens, states, pooled, torch.full((2,), 0.5), ids, ids[:7]).sample

    return network, call


@pytest.mark.parametrize("build", [adm, dit, flux])
@torch.inference_mode()
def test_a_pass_in_full_has_its_bits_and_one_without_deep_blocks_has_what_they_found(build: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    network, call = build()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    x, other = torch.randn(2, 2, 4, 16, 16)
    plain = call(network.eval(), x)
    assert make_reusable(network)
    assert torch.equal(call(network, x), plain)
    with keeping() as found:
        assert torch.equal(call(network, x), plain)
    with keeping() as found_elsewhere:
        call(network, other)

    def reused(found: list[Tensor]) -> Tensor:
        rows: list[Kept] = [tuple(tensor[row] for tensor in found) for row in range(2)]
        with reusing(rows, 2):
            return call(network, x)

    torch.testing.assert_close(reused(found), plain, rtol=1e-4, atol=1e-5)
    assert (reused(found_elsewhere) - plain).abs().max() > 1e-3
    assert torch.equal(call(network, x), plain)


def test_networks_without_deep_blocks_say_so() -> None:
    one_level = UNet2DModel(block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    of_skips = UNet2DModel(
        block_out_channels=(32, 32),
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    )
    two_blocks = DiTTransformer2DModel(sample_size=8, num_layers=2, num_attention_heads=1, attention_head_dim=8)
    assert not any(map(make_reusable, (one_level, of_skips, two_blocks)))


def test_rows_reuse_what_was_kept_at_the_last_evaluation_in_full(
    small_pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, held, advance = 0, list[int](), Sample.advance

    def noting(sample: Sample, *moved: Any) -> None:
        advance(sample, *moved)
        held.append(len(sample.kept))

    def counting(kept: list[Kept], size: int) -> Any:
        nonlocal rows
        rows += len(kept)
        return reusing(kept, size)

    monkeypatch.setattr(work, "reusing", counting)
    monkeypatch.setattr(Sample, "advance", noting)
    guided = partial(Guidance, interval=(0.2, 0.9))
    spec = SampleSpec(pack="fashion", label=5, steps=9, seed=10, guidance=guided(free_scale=3.0), cache=CACHE)
    others = [replace(spec, guidance=guided(free_scale=scale)) for scale in (1.5, 5.0)]
    with Engine([str(small_pack)], calibrate=fixed_calibration) as engine:
        outline = engine.outline([spec])
        alone = engine.generate([spec])[0]
        # of the conditional rows those of 1, 2, 4 and 5; the unconditional ones begin with 2, which is in full
        assert (rows, outline.reusing_rows, outline.denoiser_rows) == (6, 6, 15)
        assert held == [1, 1, 0, 2, 2, 0, 0, 0, 0]
        rows = 0
        swept = engine.generate([spec, *others])
        assert rows == 1 + 3 * (6 - 1)  # the first evaluations are shared
        assert np.array_equal(swept[0], alone)
        for wrong, message in (
            ({"cache": StepCache(1)}, "at least 2"),
            ({"cache": StepCache(3, 1.2)}, "from 0 to 1"),
        ):
            with pytest.raises(InvalidSpec, match=message):
                engine.submit(replace(spec, **wrong))
