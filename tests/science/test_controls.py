"""ControlNets: what diffusers draws with them, one batch for rows with and without, and what is refused."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FluxControlNetImg2ImgPipeline,
    FluxControlNetInpaintPipeline,
    FluxControlNetPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from harness.processes import wait_until
from models.adapters import InvalidControls
from models.adapters.controls import PREPROCESSORS, ControlNetwork, preprocessed
from models.batching import Alone
from models.calibration import fixed_calibration, probes
from models.denoisers.flux import GUIDANCE
from models.engine import Engine
from models.noise import draw_noise
from models.spec import Control, Guidance, Lora, Pixels, SampleSpec
from tests.science.control_nets import control_net, write_control_nets
from tests.science.formats import IF_MULTIPLIED
from tests.science.lora_files import ATTENTION, diffusers_file, pairs_for
from tests.science.test_families import (
    SCALE,
    SIDE,
    STEPS,
    autoencoder,
    differ_by_more_than_rounding,
    flux,
    noise_for,
    saved,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    unet,
)

PICTURES = [np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8) for seed in range(3)]
CANNY = Control(model="canny", image=Pixels.of(PICTURES[0]))
DEPTH = Control(model="depth", image=Pixels.of(PICTURES[1]), scale=0.7)
FLUX = (FluxControlNetPipeline, FluxControlNetImg2ImgPipeline, FluxControlNetInpaintPipeline)
SPEC = SampleSpec(
    pack="pack",
    steps=STEPS,
    seed=7,
    clip=False,
    profile="diffusers",
    prompt="a red cat",
    guidance=Guidance(free_scale=SCALE),
)


def deep_stable_diffusion_3(*, t5: bool = True) -> Any:
    """With more blocks than its ControlNets have."""
    pipeline = stable_diffusion_3(t5=t5)
    pipeline.transformer = SD3Transformer2DModel.from_config({**pipeline.transformer.config, "num_layers": 4}).eval()
    return pipeline


def deep_flux(**parts: Any) -> Any:
    """Likewise, with an uneven number of them."""
    pipeline = flux(distilled=True, shifts=True)
    layers = {"num_layers": 3, "num_single_layers": 2}
    pipeline.transformer = FluxTransformer2DModel.from_config({**pipeline.transformer.config, **layers}).eval()
    pipeline.register_modules(**parts)
    return pipeline


def saved_pack(build: Callable[[], Any], folder: Path, side: int = SIDE) -> tuple[Any, Path, Any]:
    """As `saved`, and its denoiser; a pack of Flux says the side of its latents."""
    base, pack = saved(build, folder)
    if isinstance(denoiser := base.components.get("transformer"), FluxTransformer2DModel):
        index = json.loads((pack / "model_index.json").read_text())
        (pack / "model_index.json").write_text(json.dumps(index | {"cynosure": {"latent_size": side}}))
    return base, pack, denoiser if denoiser is not None else base.unet


def engine_for(pack: Path, **options: Any) -> Engine:
    how: dict[str, Any] = {"precision": "float32", "calibrate": fixed_calibration, **options}
    return Engine([str(pack)], controls=pack.parent / "controls", **how)


def steered(base: Any, kind: Any, nets: list[Any]) -> Any:
    """Diffusers' pipeline of the same parts with ControlNets."""
    more = {} if hasattr(base, "text_encoder_2") else {"requires_safety_checker": False}
    taken = inspect.signature(kind).parameters
    parts = {name: part for name, part in base.components.items() if name in taken}
    pipeline = kind(**parts, controlnet=nets if len(nets) > 1 else nets[0], **more)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def asked_of_diffusers(pipeline: Any, *controls: Control, field: str = "image", **more: Any) -> np.ndarray:
    """What the pipeline draws; Flux's scale of classifier-free guidance has another name, and that of pictures none."""
    guided: dict[str, Any] = {"guidance_scale": SCALE}
    if isinstance(pipeline, FLUX):
        guided = {"guidance_scale": GUIDANCE}
    if isinstance(pipeline, FluxControlNetPipeline):
        guided |= {"true_cfg_scale": SCALE, "negative_prompt": "dog"}

    def each(values: list[Any]) -> Any:
        return values if len(values) > 1 else values[0]

    fields = {
        field: each([Image.fromarray(control.image.array()) for control in controls]),
        "controlnet_conditioning_scale": each([control.scale for control in controls]),
        "control_guidance_start": each([control.start for control in controls]),
        "control_guidance_end": each([control.end for control in controls]),
    }
    with torch.inference_mode():
        picture: np.ndarray = pipeline(
            "a red cat",
            num_inference_steps=STEPS,
            output_type="np",
            **guided,
            **fields,
            **more,
        ).images[0]
    return picture


@pytest.fixture
def without_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipelines encode pictures to the most likely latents, as is done here, and not to random ones around them."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, *args, **kwargs: self.mode())


def asked(kind: Any) -> SampleSpec:
    """What a pipeline of this kind is asked as well."""
    if kind is FluxControlNetPipeline:
        return replace(SPEC, sampler="flow_euler", negative_prompt="dog")
    return replace(SPEC, sampler="flow_euler") if kind is StableDiffusion3ControlNetPipeline else SPEC


def sized(pipeline: Any, height: int, width: int) -> dict[str, Any]:
    """Size and noise of a picture, as the pipeline takes them."""
    noise = noise_for(height, width)
    if isinstance(pipeline, FluxControlNetPipeline):
        noise = pipeline._pack_latents(noise, 1, *noise.shape[1:])
    return {"height": height, "width": width, "latents": noise}


@pytest.mark.usefixtures("without_chance")
@pytest.mark.parametrize(
    ("build", "kind", "field"),
    [
        (stable_diffusion, StableDiffusionControlNetPipeline, "image"),
        (stable_diffusion_xl, StableDiffusionXLControlNetPipeline, "image"),
        (deep_stable_diffusion_3, StableDiffusion3ControlNetPipeline, "control_image"),
        (deep_flux, FluxControlNetPipeline, "control_image"),
    ],
    ids=["stable diffusion", "xl", "3", "flux"],
)
def test_controls_steer_as_in_diffusers(build: Callable[[], Any], kind: Any, field: str, tmp_path: Path) -> None:
    base, pack, denoiser = saved_pack(build, tmp_path)
    nets = write_control_nets(tmp_path / "controls", denoiser, "canny", "depth")
    used = ((CANNY,), (replace(DEPTH, start=0.2, end=0.7),), (DEPTH, replace(CANNY, end=0.5)))
    spec = asked(kind)
    with engine_for(pack) as engine:
        plain, nothing, *mine = engine.generate(
            [spec, replace(spec, controls=(replace(CANNY, scale=0.0),)), *(replace(spec, controls=one) for one in used)]
        )
    assert (plain == nothing).all()
    for controls, picture in zip(used, mine, strict=True):
        pipeline = steered(base, kind, [nets[control.model] for control in controls])
        expected = asked_of_diffusers(pipeline, *controls, field=field, **sized(pipeline, 16, 16))
        assert not differ_by_more_than_rounding(picture, expected), controls
        assert np.abs(picture.astype(int) - plain).mean() > 1  # they can be seen


def is_measured_as_served(engine: Engine, spec: SampleSpec, latents: torch.Tensor) -> bool:
    """Whether a ControlNet is measured with inputs of the shapes that rows have, so that these go into batches."""
    pack = engine.packs["pack"]
    base, controls = pack.denoiser.adapter_base, pack.runner.preparation.controls
    assert base is not None
    assert base.controls is not None
    assert controls is not None
    conditional, _ = pack.denoiser.conditioning(spec)
    size = spec.size(pack.denoiser.picture_size)
    [row] = controls.of(spec.controls, lambda _: torch.zeros(3, *size), conditional)
    timesteps, conditioning = torch.ones(1), {name: tensor[None] for name, tensor in conditional.items()}
    row.network.joined(latents, timesteps, conditioning)
    row.network.use(Alone())
    served = {
        **base.controls.inputs(latents, timesteps, conditioning),
        **{k: v[None] for k, v in row.condition.items()},
    }
    return row.network.measured == tuple(tensor.shape[1:] for tensor in served.values())


OF_3_5 = {
    "force_zeros_for_pooled_projection": False,
    "joint_attention_dim": None,
    "use_pos_embed": False,
    "pos_embed_type": None,
}
OF_XLABS = {"patch_size": 2, "conditioning_embedding_channels": 4, "num_single_layers": 0}


def flux_of_eighths() -> Any:
    """With latents that stand for squares of eight pixels."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    config = {**autoencoder(shift_factor=0.1159).config, **blocks, "block_out_channels": (32,) * 4}
    return deep_flux(vae=AutoencoderKL.from_config(config).eval())


@pytest.mark.usefixtures("without_chance")
@pytest.mark.parametrize(
    ("build", "kind", "config", "factor"),
    [
        (deep_stable_diffusion_3, StableDiffusion3ControlNetPipeline, {"force_zeros_for_pooled_projection": False}, 2),
        (deep_stable_diffusion_3, StableDiffusion3ControlNetPipeline, OF_3_5, 2),
        (deep_flux, FluxControlNetPipeline, {"guidance_embeds": False, "num_layers": 0}, 2),
        (flux_of_eighths, FluxControlNetPipeline, OF_XLABS, 8),
    ],
    ids=["3 with pooled prompts", "3.5", "flux without guidance", "xlabs"],
)
def test_controls_of_transformers_differ_in_what_they_are_told(
    build: Callable[[], Any], kind: Any, config: dict[str, Any], factor: int, tmp_path: Path
) -> None:
    base, pack, denoiser = saved_pack(build, tmp_path, side=16 // factor * 2)
    nets = write_control_nets(tmp_path / "controls", denoiser, "canny", **config)
    write_control_nets(tmp_path / "controls", stable_diffusion().unet, "first")
    side, family = 4 * factor, "Flux" if kind is FluxControlNetPipeline else "Stable Diffusion 3"
    spec = replace(asked(kind), height=side, width=side, controls=(CANNY,))
    with engine_for(pack) as engine:
        plain, mine = engine.generate([replace(spec, controls=()), spec])
        with pytest.raises(InvalidControls, match=f"it is for Stable Diffusion 1, and the model is {family}"):
            engine.submit(replace(spec, controls=(replace(CANNY, model="first"),)))
        assert is_measured_as_served(engine, spec, latents=torch.zeros(1, 4, 4, 4))
    pipeline = steered(base, kind, [nets["canny"]])
    noise = draw_noise(7, 0, 0, (4, 4, 4))[None]
    if kind is FluxControlNetPipeline:
        noise = pipeline._pack_latents(noise, 1, 4, 4, 4)
    expected = asked_of_diffusers(pipeline, CANNY, field="control_image", height=side, width=side, latents=noise)
    assert not differ_by_more_than_rounding(mine, expected)
    assert np.abs(mine.astype(int) - plain).mean() > 1


@pytest.mark.parametrize("channels", [4, 9], ids=["any UNet", "UNet trained for inpainting"])
def test_pictures_that_start_from_pictures_are_steered_as_in_diffusers(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build() -> Any:
        parts = stable_diffusion().components
        if channels == 9:
            parts["unet"] = unet(cross_attention_dim=32, in_channels=9)
        return StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)

    base, pack = saved(build, tmp_path)
    nets = write_control_nets(tmp_path / "controls", stable_diffusion().unet, "canny")
    control, start, strength = replace(CANNY, start=0.2, end=0.8), Image.fromarray(PICTURES[2]), 0.7
    mask = np.zeros((16, 16, 1), np.uint8)
    mask[4:12, 6:] = 255
    begun = replace(SPEC, controls=(control,), init_image=Pixels.of(PICTURES[2]), strength=strength)
    with engine_for(pack) as engine:
        redrawn, inpainted = engine.generate([begun, replace(begun, mask=Pixels.of(mask))])
    for kind in (StableDiffusionControlNetImg2ImgPipeline, StableDiffusionControlNetInpaintPipeline):
        module = sys.modules[kind.__module__]
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: noise_for(16, 16))
        monkeypatch.setattr(module, "retrieve_latents", lambda output, **kwargs: output.latent_dist.mode())

    def drawn(kind: Any, **more: Any) -> np.ndarray:
        pipeline = steered(base, kind, [nets["canny"]])
        size = {"height": 16, "width": 16}
        return asked_of_diffusers(pipeline, control, field="control_image", strength=strength, **size, **more)

    if channels == 4:
        assert not differ_by_more_than_rounding(redrawn, drawn(StableDiffusionControlNetImg2ImgPipeline, image=start))
    masked = {"image": start, "mask_image": Image.fromarray(mask[..., 0])}
    assert not differ_by_more_than_rounding(inpainted, drawn(StableDiffusionControlNetInpaintPipeline, **masked))


@pytest.mark.usefixtures("without_chance")
def test_pictures_of_flux_that_start_from_pictures_are_steered_as_in_diffusers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, pack, denoiser = saved_pack(deep_flux, tmp_path)
    nets = write_control_nets(tmp_path / "controls", denoiser, "canny")
    control = replace(CANNY, start=0.2, end=0.8)
    plain = replace(SPEC, sampler="flow_euler", guidance=Guidance(), strength=0.7, init_image=Pixels.of(PICTURES[2]))
    begun = replace(plain, controls=(control,))
    mask = np.zeros((16, 16, 1), np.uint8)
    mask[4:12, 6:] = 255
    with engine_for(pack) as engine:
        unsteered, *mine = engine.generate([plain, begun, replace(begun, mask=Pixels.of(mask))])
    assert np.abs(mine[0].astype(int) - unsteered).mean() > 1
    start: dict[str, Any] = {"image": Image.fromarray(PICTURES[2]), "strength": 0.7, "height": 16, "width": 16}
    masked = {"mask_image": Image.fromarray(mask[..., 0])}
    kinds = ((FluxControlNetImg2ImgPipeline, {}), (FluxControlNetInpaintPipeline, masked))
    for (kind, more), picture in zip(kinds, mine, strict=True):
        monkeypatch.setattr(sys.modules[kind.__module__], "randn_tensor", lambda *args, **kwargs: noise_for(16, 16))
        pipeline = steered(base, kind, [nets["canny"]])
        expected = asked_of_diffusers(pipeline, control, field="control_image", **start, **more)
        assert not differ_by_more_than_rounding(picture, expected), kind


@pytest.mark.parametrize(
    ("build", "precision", "calibrate"),
    [
        (stable_diffusion, "float32", None),
        pytest.param(stable_diffusion, "bfloat16", None, marks=IF_MULTIPLIED),
        (partial(deep_stable_diffusion_3, t5=False), "float32", fixed_calibration),  # to measure them takes a minute
        (deep_flux, "bfloat16", fixed_calibration),
    ],
    ids=["float32", "bfloat16", "3", "flux"],
)
def test_rows_have_the_same_bytes_alone_and_among_rows_with_other_controls(
    build: Callable[[], Any], precision: str, calibrate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "CPU_SIZES", (1, 2, 4, 8, 16))  # there are 12 rows
    _, pack, denoiser = saved_pack(build, tmp_path)
    write_control_nets(tmp_path / "controls", denoiser, "canny", "depth")
    (tmp_path / "loras").mkdir()
    changed = {"unet" if build is stable_diffusion else "transformer": pairs_for(denoiser, ATTENTION)}
    diffusers_file(tmp_path / "loras" / "ink.safetensors", changed)
    samplers = ("ddim", "euler_ancestral", "heun") if build is stable_diffusion else ("flow_euler", "dpmpp_2m")
    rows: list[int] = []
    run = ControlNetwork._run

    def counted(network: ControlNetwork, inputs: Any, chosen: torch.Tensor) -> Any:
        rows.append(len(chosen))
        return run(network, inputs, chosen)

    late, short = replace(CANNY, start=0.5), replace(DEPTH, end=0.6)
    used: list[tuple[Control, ...]] = [(), (CANNY,), (), (DEPTH,), (CANNY, DEPTH), (late,), (short, CANNY, CANNY), ()]
    specs = [
        SampleSpec(
            pack="pack",
            prompt=f"{'abc'[number % 3]} cat",
            steps=3 + number % 2,
            seed=number,
            sampler=samplers[number % len(samplers)],
            guidance=Guidance(free_scale=(None, 3.0)[number % 2]),
            controls=controls,
            loras=(Lora("ink"),) if number % 4 == 3 else (),
        )
        for number, controls in enumerate(used)
    ]
    with engine_for(pack, precision=precision, calibrate=calibrate, loras=tmp_path / "loras") as engine:
        plain = engine.generate(specs[::2])  # before a ControlNet is loaded
        assert engine.wait_until_measured(timeout=120)
        together = engine.generate(specs)
        wait_until(lambda: not engine.is_measuring, seconds=120, what="the ControlNets are measured")
        monkeypatch.setattr(ControlNetwork, "_run", counted)
        batched = engine.generate(specs)
        if calibrate is None:
            assert max(engine.packs["pack"].calibration.denoiser.sizes) > 4
            assert max(rows) > 1
        alone = [engine.generate([spec])[0] for spec in specs]
        others = engine.generate(specs[3:6])
    assert [picture.tobytes() for picture in together] == [picture.tobytes() for picture in alone]
    assert [picture.tobytes() for picture in batched] == [picture.tobytes() for picture in alone]
    assert [picture.tobytes() for picture in others] == [picture.tobytes() for picture in alone[3:6]]
    assert [picture.tobytes() for picture in plain] == [picture.tobytes() for picture in alone[::2]]
    assert len({picture.tobytes() for picture in together}) == len(specs)


def test_what_can_not_be_used_is_refused_by_what_is_wrong(tmp_path: Path) -> None:
    base, pack = saved(stable_diffusion, tmp_path)
    folder = tmp_path / "controls"
    write_control_nets(folder, base.unet, "canny", "gone", "torn", "pickled")
    write_control_nets(folder, stable_diffusion_xl().unet, "xl")
    write_control_nets(folder, stable_diffusion_3(t5=False).transformer, "third")
    write_control_nets(folder, stable_diffusion_3(t5=False).transformer, "masked", extra_conditioning_channels=1)
    write_control_nets(folder, deep_flux().transformer, "flux")
    write_control_nets(folder, deep_flux().transformer, "union", num_mode=10)
    control_net(unet(cross_attention_dim=48)).save_pretrained(folder / "wide")
    write_control_nets(folder, base.unet, "coarse", factor=8)
    base.vae.save_pretrained(folder / "vae")
    config = json.loads((folder / "canny" / "config.json").read_text())
    for name, changed in {"shuffle": {"global_pool_conditions": True}, "new": {"of_tomorrow": 1}}.items():
        shutil.copytree(folder / "canny", folder / name)
        (folder / name / "config.json").write_text(json.dumps(config | changed))
    weights = "diffusion_pytorch_model.safetensors"
    (folder / "torn" / weights).write_bytes((folder / "torn" / weights).read_bytes()[:-9])
    (folder / "pickled" / weights).rename(folder / "pickled" / "diffusion_pytorch_model.bin")
    faults = {
        "xl": "'xl' can't be used: it is for Stable Diffusion XL, and the model is Stable Diffusion 1",
        "wide": "its cross_attention_dim is 48, and that of the model's UNet 32",
        "coarse": "it reads pictures of 8 pixels to a latent, and the model's have 2",
        "third": "'third' can't be used: it is for Stable Diffusion 3, and the model is Stable Diffusion 1",
        "masked": "extra_conditioning_channels is 1; served: 0",
        "flux": "'flux' can't be used: it is for Flux, and the model is Stable Diffusion 1",
        "union": "num_mode is 10; served: null",
        "vae": "is of class AutoencoderKL; served: ControlNetModel, SD3ControlNetModel, FluxControlNetModel",
        "shuffle": "global_pool_conditions is true; served: false",
        "new": "of_tomorrow is 1, and no such key is read here",
        "pickled": "pickles can run code",
        "torn": "can't be loaded as ControlNetModel",
        "gone": "its files have changed",
        "cany": "did you mean 'canny'",
    }
    with engine_for(pack) as engine:
        listed = engine.packs["pack"].runner.preparation.controls
        assert listed is not None
        known = {one.name: one for one in listed.listed}
        (folder / "gone" / weights).write_bytes((folder / "canny" / weights).read_bytes())
        for name, fault in faults.items():
            with pytest.raises(InvalidControls, match=fault):
                engine.submit(replace(SPEC, controls=(replace(CANNY, model=name),)))
        for name in ("xl", "wide", "third", "flux", "union", "vae", "shuffle", "new", "pickled"):
            assert faults[name].rpartition("can't be used: ")[2] in (known[name].fault or "")
            assert str(tmp_path) not in (known[name].fault or "")
        assert (known["canny"].fault, known["canny"].family, known["xl"].family) == (
            None,
            "Stable Diffusion 1",
            "Stable Diffusion XL",
        )
        for control, fault in (
            (replace(CANNY, digest="0" * 64), "another than was asked for"),
            (replace(CANNY, preprocess="depth"), "known: canny, tile, gray, invert"),
        ):
            with pytest.raises(InvalidControls, match=fault):
                engine.submit(replace(SPEC, controls=(control,)))
        with pytest.raises(InvalidControls, match="at most 3"):
            engine.submit(replace(SPEC, controls=(CANNY,) * 4))
        small = replace(CANNY, image=Pixels.of(PICTURES[0][:4, :8]))
        fitted = "controls: the picture for 'canny' has 8×4 pixels and is fitted to 16×16."
        assert fitted in engine.outline([replace(SPEC, controls=(small,))]).remarks
    with (
        Engine([str(pack)], precision="float32", calibrate=fixed_calibration) as engine,
        pytest.raises(InvalidControls, match="no folder of ControlNets"),
    ):
        engine.submit(replace(SPEC, controls=(CANNY,)))


def test_preprocessors_make_what_their_names_say() -> None:
    picture = np.full((32, 48, 3), 40, np.uint8)
    picture[8:24, 12:36] = (250, 240, 200)
    made = {name: preprocessed(picture, name) for name in PREPROCESSORS}
    assert all(one.shape == picture.shape and one.dtype == np.uint8 for one in made.values())
    assert (preprocessed(picture, None) == picture).all()
    edges = made["canny"]
    assert set(np.unique(edges)) == {0, 255}
    assert 70 <= (edges[..., 0] == 255).sum() <= 90  # around a rectangle of 16 by 24, one pixel wide
    assert not edges[12:20, 16:32].any()
    assert not edges[:6].any()
    assert (made["invert"] == 255 - picture).all()
    assert (made["gray"][..., 0] == made["gray"][..., 2]).all()
    assert tuple(made["gray"][16, 20]) == (238,) * 3
    noisy = np.random.default_rng(0).integers(0, 255, picture.shape, dtype=np.uint8)
    smooth = preprocessed(noisy, "tile")
    assert np.abs(np.diff(smooth.astype(int), axis=0)).mean() < np.abs(np.diff(noisy.astype(int), axis=0)).mean() / 5
    assert np.abs(smooth.mean((0, 1)) - noisy.mean((0, 1))).max() < 2
