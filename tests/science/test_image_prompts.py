"""Image prompts: what diffusers draws with an IP-Adapter, one batch for rows with and without, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetInpaintPipeline, StableDiffusionImg2ImgPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil

from models.adapters import ImagePrompts, InvalidImagePrompts
from models.calibration import fixed_calibration
from models.engine import Engine
from models.memory import weights_of
from models.pack import InvalidPack, open_pack
from models.precision import FLOAT32
from models.spec import Control, Guidance, ImagePrompt, Lora, Pixels, SampleSpec, StepCache
from tests.science.control_nets import write_control_nets
from tests.science.formats import IF_MULTIPLIED
from tests.science.ip_adapters import SIDE, Kind, write_ip_adapter
from tests.science.lora_files import ATTENTION, diffusers_file, pairs_for
from tests.science.test_families import (
    SCALE,
    STEPS,
    differ_by_more_than_rounding,
    noise_for,
    saved,
    stable_diffusion,
    stable_diffusion_xl,
)

PICTURES = [
    Pixels.of(np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8))
    for seed, shape in enumerate([(40, 24, 3), (16, 16, 3), (16, 16, 3)])
]
ONE, OTHER = ImagePrompt(PICTURES[0]), ImagePrompt(PICTURES[1], 0.6)
SPEC = SampleSpec(
    pack="pack",
    steps=STEPS,
    seed=7,
    clip=False,
    profile="diffusers",
    prompt="a red cat",
    guidance=Guidance(free_scale=SCALE),
)


def engine_for(pack: Path, **options: Any) -> Engine:
    how: dict[str, Any] = {"precision": "float32", "calibrate": fixed_calibration, **options}
    return Engine([str(pack)], **how)


def prompted(pipeline: Any, file: Path, prompts: Sequence[ImagePrompt]) -> dict[str, Any]:
    """Load the adapter once for each prompt, with its scale; returns what the pipeline is to be called with."""
    folder, names = file.parents[1], [file.name] * len(prompts)
    pipeline.register_modules(feature_extractor=None, image_encoder=None)
    pipeline.load_ip_adapter(str(folder), "ip_adapter", names, str(folder / "image_encoder"), low_cpu_mem_usage=False)
    pipeline.register_modules(feature_extractor=CLIPImageProcessorPil(size=SIDE, crop_size=SIDE))
    pipeline.set_ip_adapter_scale([prompt.scale for prompt in prompts])
    return {"ip_adapter_image": [Image.fromarray(prompt.image.array()) for prompt in prompts]}


def drawn_by(pipeline: Any, **more: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "np", **more}
    with torch.inference_mode():
        picture: np.ndarray = pipeline("a red cat", **how).images[0]
    return picture


@pytest.mark.parametrize("build", [stable_diffusion, stable_diffusion_xl], ids=["stable diffusion", "xl"])
@pytest.mark.parametrize("kind", ["plain", "plus", "full-face"])
def test_pictures_prompt_as_in_diffusers(build: Callable[[], Any], kind: Kind, tmp_path: Path) -> None:
    pipeline, pack = saved(build, tmp_path)
    file = write_ip_adapter(pack, pipeline.unet, kind)
    used = ((ONE,), (OTHER,), (ONE, OTHER))
    unguided = replace(SPEC, guidance=Guidance(), image_prompts=(ONE,))
    with engine_for(pack) as engine:
        plain, nothing, alone, *mine = engine.generate(
            [
                SPEC,
                replace(SPEC, image_prompts=(replace(ONE, scale=0.0),)),
                unguided,
                *(replace(SPEC, image_prompts=prompts) for prompts in used),
            ]
        )
        assert engine.packs["pack"].denoiser.image_prompts.kind == kind
    assert (plain == nothing).all()
    size = {"height": 16, "width": 16, "latents": noise_for(16, 16)}
    for prompts, picture in zip(used, mine, strict=True):
        how = prompted(pipeline, file, prompts)
        assert not differ_by_more_than_rounding(picture, drawn_by(pipeline, **how, **size)), prompts
        assert np.abs(picture.astype(int) - plain).mean() > 1  # they can be seen
    how = prompted(pipeline, file, (ONE,))
    assert not differ_by_more_than_rounding(alone, drawn_by(pipeline, **how, **size | {"guidance_scale": 1.0}))


def test_pictures_that_start_from_pictures_are_prompted_beside_loras_and_controls_as_in_diffusers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, pack = saved(stable_diffusion, tmp_path)
    file = write_ip_adapter(pack, base.unet)
    nets = write_control_nets(tmp_path / "controls", base.unet, "canny")
    (tmp_path / "loras").mkdir()
    diffusers_file(tmp_path / "loras" / "ink.safetensors", {"unet": pairs_for(base.unet, ATTENTION)})
    control, strength = Control(model="canny", image=PICTURES[1], scale=0.7), 0.7
    mask = np.zeros((16, 16, 1), np.uint8)
    mask[4:12, 6:] = 255
    begun = replace(SPEC, image_prompts=(OTHER,), init_image=PICTURES[2], strength=strength)
    full = replace(begun, mask=Pixels.of(mask), loras=(Lora("ink", 0.8),), controls=(control,))
    with engine_for(pack, loras=tmp_path / "loras", controls=tmp_path / "controls") as engine:
        redrawn, inpainted = engine.generate([begun, full])
    for kind in (StableDiffusionImg2ImgPipeline, StableDiffusionControlNetInpaintPipeline):
        module = sys.modules[kind.__module__]
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: noise_for(16, 16))
        monkeypatch.setattr(module, "retrieve_latents", lambda output, **kwargs: output.latent_dist.mode())
    start = Image.fromarray(PICTURES[2].array())
    pipeline: Any = StableDiffusionImg2ImgPipeline(**base.components, requires_safety_checker=False)
    how = prompted(pipeline, file, (OTHER,)) | {"image": start, "strength": strength}
    assert not differ_by_more_than_rounding(redrawn, drawn_by(pipeline, **how))
    pipeline = StableDiffusionControlNetInpaintPipeline(
        **pipeline.components, controlnet=nets["canny"], requires_safety_checker=False
    )
    pipeline.load_lora_weights(tmp_path / "loras" / "ink.safetensors", adapter_name="ink")
    pipeline.set_adapters(["ink"], [0.8])
    steering = Image.fromarray(control.image.array())
    how |= {"mask_image": Image.fromarray(mask[..., 0]), "control_image": steering, "height": 16, "width": 16}
    expected = drawn_by(pipeline, controlnet_conditioning_scale=0.7, **how)
    assert not differ_by_more_than_rounding(inpainted, expected)


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=IF_MULTIPLIED)])
def test_rows_have_the_same_bytes_alone_and_among_rows_with_other_pictures(precision: str, tmp_path: Path) -> None:
    base, pack = saved(stable_diffusion, tmp_path)
    write_ip_adapter(pack, base.unet, "plus")
    write_control_nets(tmp_path / "controls", base.unet, "canny")
    (tmp_path / "loras").mkdir()
    diffusers_file(tmp_path / "loras" / "ink.safetensors", {"unet": pairs_for(base.unet, ATTENTION)})
    used: list[tuple[ImagePrompt, ...]] = [
        (),
        (ONE,),
        (OTHER,),
        (OTHER, ONE),
        (),
        (OTHER, ONE),
        (replace(ONE, scale=0.2),),
    ]
    specs = [
        SampleSpec(
            pack="pack",
            prompt=f"{'abc'[number % 3]} cat",
            steps=3 + number % 2,
            seed=number,
            sampler=("ddim", "euler_ancestral", "heun")[number % 3],
            guidance=Guidance(free_scale=(None, 3.0)[number % 2]),
            image_prompts=prompts,
            loras=(Lora("ink"),) if number % 3 == 1 else (),
            cache=StepCache(2) if number in (1, 5) else None,
            controls=(Control(model="canny", image=PICTURES[1], end=0.7),) if number % 4 > 1 else (),
        )
        for number, prompts in enumerate(used)
    ]
    folders = {"loras": tmp_path / "loras", "controls": tmp_path / "controls"}
    with engine_for(pack, precision=precision, calibrate=None, **folders) as engine:
        plain = engine.generate(specs[::4])  # before a picture is seen
        assert engine.wait_until_measured(timeout=120)
        together = engine.generate(specs)
        assert max(engine.packs["pack"].calibration.denoiser.sizes) > 4
        alone = [engine.generate([spec])[0] for spec in specs]
        flop = [engine.outline([replace(specs[0], image_prompts=one)]).flop or 0 for one in used[:2]]
        assert 0 < flop[0] < flop[1]
    with engine_for(pack, precision=precision, **folders) as engine:  # pictures are seen before a LoRA is loaded
        others = engine.generate(specs[3:1:-1])[::-1] + engine.generate(specs[1:2])
    assert [picture.tobytes() for picture in together] == [picture.tobytes() for picture in alone]
    assert [picture.tobytes() for picture in plain] == [picture.tobytes() for picture in alone[::4]]
    assert [picture.tobytes() for picture in others] == [picture.tobytes() for picture in (*alone[2:4], alone[1])]
    assert len({picture.tobytes() for picture in together}) == len(specs)


def test_what_can_not_be_used_is_refused_by_what_is_wrong(tmp_path: Path) -> None:
    base, folder = saved(stable_diffusion, tmp_path)
    pack, config = open_pack(str(folder)), folder / "image_encoder" / "config.json"
    assert not pack.has_ip_adapter
    file = write_ip_adapter(folder, base.unet)
    tensors = load_file(file)
    prompts = ImagePrompts(pack, base.unet, torch.device("cpu"), FLOAT32)
    assert prompts.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    kept = [prompts._encoder, prompts._projection, *(each for _, *pair in prompts._layers for each in pair)]
    parameters = sum(parameter.numel() for network in kept for parameter in network.parameters())
    assert weights_of(pack, FLOAT32, FLOAT32)["image prompts"].parameters == parameters
    with pytest.raises(InvalidImagePrompts, match="at most 4"):
        prompts.of((ONE,) * 5)

    def refused(match: str, changed: dict[str, torch.Tensor] | None = None) -> None:
        save_file(tensors if changed is None else changed, file)
        with pytest.raises(InvalidPack, match=match):
            ImagePrompts(pack, base.unet, torch.device("cpu"), FLOAT32)

    name, other = "image_proj.proj.bias", torch.ones(1)
    refused("NaN or infinite", {**tensors, name: tensors[name] * float("nan")})
    refused("is no IP-Adapter: it holds unet.x", {**tensors, "unet.x": other})
    refused("FaceID", {**tensors, "ip_adapter.0.to_k_lora.down.weight": other})
    refused("FaceID", {f"image_proj.{key}.weight": torch.ones(1) for key in ("proj.0", "proj.2", "norm")})
    refused("is for another UNet: 99.to_k_ip.weight", {**tensors, "ip_adapter.99.to_k_ip.weight": other})
    refused("does not fit the UNet", {**tensors, "ip_adapter.1.to_k_ip.weight": torch.ones(32, 48)})
    wide = {"image_proj.proj.weight": torch.ones(4 * 32, 48)}
    refused("image_encoder gives 24: it was trained with another encoder", {**tensors, **wide})
    config.write_text(json.dumps({**json.loads(config.read_text()), "of_tomorrow": 1}))
    refused("of_tomorrow is 1, and no such key is read")
    shutil.rmtree(config.parent)
    refused(r"image_encoder has no config\.json")
    shutil.copy(file, file.with_name("other.safetensors"))
    refused(r"holds several IP-Adapters \(ip-adapter-plain.safetensors, other.safetensors\); keep one")
    for path in file.parent.iterdir():
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(InvalidPack, match=r"other\.bin, which can run code"):
        ImagePrompts(pack, base.unet, torch.device("cpu"), FLOAT32)
    shutil.rmtree(file.parent)
    with engine_for(folder) as engine, pytest.raises(InvalidImagePrompts, match="this model takes none"):
        engine.submit(replace(SPEC, image_prompts=(ONE,)))


def test_pictures_are_fitted_as_the_folder_says(tmp_path: Path) -> None:
    base, pack = saved(stable_diffusion, tmp_path)
    write_ip_adapter(pack, base.unet)
    index = json.loads((pack / "model_index.json").read_text())
    index |= {"feature_extractor": ["transformers", "CLIPImageProcessor"]}
    (pack / "model_index.json").write_text(json.dumps(index))
    CLIPImageProcessorPil(size=20, crop_size=SIDE, image_mean=[0.4] * 3).save_pretrained(pack / "feature_extractor")
    with engine_for(pack) as engine:
        loaded = engine.packs["pack"].denoiser.image_prompts
        assert loaded is not None
        pixels = loaded._processor(Image.new("RGB", (40, 20), "white"), return_tensors="pt").pixel_values
        assert pixels.shape == (1, 3, SIDE, SIDE)
        assert pixels[0, 0, 0, 0] == pytest.approx(0.6 / 0.26862954)
    CLIPImageProcessorPil(size=20, crop_size=20).save_pretrained(pack / "feature_extractor")
    with pytest.raises(InvalidPack, match="makes pictures of 20×20, and the image_encoder reads 16×16"):
        engine_for(pack)
