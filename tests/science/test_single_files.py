"""Single files in the published layouts become folders that draw what the pipeline drew they were written from."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FluxPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from models.calibration.result import fixed_calibration
from models.engine import Engine
from models.importing.errors import Unfit
from models.importing.single_files.__main__ import command
from models.importing.single_files.conversion import import_file
from models.importing.single_files.file import conversion_command
from models.noise import draw_noise
from models.spec import Guidance, SampleSpec
from tests.science import layouts
from tests.science.test_families import (
    SCALE,
    SIDE,
    STEPS,
    flux,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    unet,
)

State = dict[str, torch.Tensor]
DENOISER = "model.diffusion_model."


def stable_diffusion_2() -> StableDiffusionPipeline:
    parts = stable_diffusion("v_prediction").components
    parts["unet"] = unet(cross_attention_dim=32, use_linear_projection=True)
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def inpainting() -> StableDiffusionInpaintPipeline:
    parts = stable_diffusion().components
    parts["unet"] = unet(cross_attention_dim=32, in_channels=9)
    return StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)


def xl_in_v() -> Any:
    pipeline = stable_diffusion_xl()
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    return pipeline


def sd3_in_its_layout() -> Any:
    """CLIP-L's projection is a unit matrix, as the published folder has it."""
    pipeline = stable_diffusion_3(t5=True)
    pipeline.text_encoder.text_projection.weight.data = torch.eye(32)
    return pipeline


def sd1_file(pipeline: Any) -> State:
    text = layouts.clip(pipeline.text_encoder, "cond_stage_model.transformer.")
    positions = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(16)[None]}
    schedule = {"alphas_cumprod": torch.ones(1000), "model_ema.decay": torch.ones(())}
    return {**layouts.unet(pipeline.unet), **layouts.vae(pipeline.vae), **text, **positions, **schedule}


def sd2_file(pipeline: Any) -> State:
    prefix = "cond_stage_model.model."
    last = {f"{prefix}transformer.resblocks.23.ln_1.{part}": torch.ones(32) for part in ("weight", "bias")}
    text = layouts.open_clip(pipeline.text_encoder, prefix) | last | {f"{prefix}logit_scale": torch.ones(())}
    return {**layouts.unet(pipeline.unet), **layouts.vae(pipeline.vae), **text}


def xl_file(pipeline: Any) -> State:
    first = layouts.clip(pipeline.text_encoder, "conditioner.embedders.0.transformer.")
    second = layouts.open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    return {**layouts.unet(pipeline.unet), **layouts.vae(pipeline.vae), **first, **second}


def marked_xl_file(pipeline: Any) -> State:
    return xl_file(pipeline) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}


def sd3_file(pipeline: Any) -> State:
    own = layouts.clip(pipeline.text_encoder, "text_encoders.clip_l.transformer.")
    own["text_encoders.clip_l.transformer.text_projection.weight"] = torch.zeros(32, 32)  # which is not read
    other = layouts.clip(pipeline.text_encoder_2, "text_encoders.clip_g.transformer.")
    t5 = layouts.prefixed(pipeline.text_encoder_3.state_dict(), "text_encoders.t5xxl.transformer.")
    t5.pop("text_encoders.t5xxl.transformer.encoder.embed_tokens.weight")
    denoiser = layouts.prefixed(layouts.sd3(pipeline.transformer), DENOISER)
    return {**denoiser, **layouts.vae(pipeline.vae), **own, **other, **t5}


def flux_file(pipeline: Any) -> State:
    clip = layouts.clip(pipeline.text_encoder, "text_encoders.clip_l.transformer.")
    t5 = layouts.prefixed(pipeline.text_encoder_2.state_dict(), "text_encoders.t5xxl.transformer.")
    t5.pop("text_encoders.t5xxl.transformer.shared.weight")  # files have one of both names
    denoiser = layouts.prefixed(layouts.flux(pipeline.transformer), DENOISER)
    return {**denoiser, **layouts.vae(pipeline.vae, "vae."), **clip, **t5}


def flux_alone(pipeline: Any) -> State:
    return layouts.flux(pipeline.transformer)


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], State], list[str]]] = {
    "SD 1": (
        stable_diffusion,
        sd1_file,
        ["family: Stable Diffusion 1", "predicts: epsilon (the scheduler of ", "not read: alphas_cumprod, model_ema"],
    ),
    "inpainting": (inpainting, sd1_file, ["family: Stable Diffusion 1, for inpainting"]),
    "SD 2 v": (
        stable_diffusion_2,
        sd2_file,
        ["family: Stable Diffusion 2", "predicts: v_prediction (the scheduler of "],
    ),
    "XL": (stable_diffusion_xl, xl_file, ["family: Stable Diffusion XL", "predicts: epsilon (the scheduler of "]),
    "XL v": (
        xl_in_v,
        marked_xl_file,
        ["predicts: v_prediction (its tensor v_pred), zero terminal SNR (its tensor ztsnr)"],
    ),
    "SD 3": (sd3_in_its_layout, sd3_file, ["family: Stable Diffusion 3", "text_encoder_3: "]),
    "Flux": (partial(flux, distilled=True, shifts=True), flux_file, ["family: Flux.1 with a guidance input, as dev"]),
    "Flux, the transformer alone": (
        partial(flux, distilled=False, shifts=False),
        flux_alone,
        ["family: Flux.1 without a guidance input, as schnell", "vae: "],
    ),
}


def expected(pipeline: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    latents = draw_noise(7, 0, 0, (4, SIDE, SIDE))[None]
    scale: dict[str, Any] = {"guidance_scale": SCALE}
    if isinstance(pipeline, FluxPipeline):
        latents = pipeline._pack_latents(latents, 1, 4, SIDE, SIDE)
        scale = {"negative_prompt": "dog", "true_cfg_scale": SCALE}
    with torch.inference_mode():
        [picture] = pipeline(
            "a red cat", num_inference_steps=STEPS, height=16, width=16, latents=latents, output_type="np", **scale
        ).images
    return (picture * 255).round().astype(int)


def drawn(folder: Path, **what: Any) -> np.ndarray:
    guidance = Guidance(free_scale=SCALE)
    asked = {"prompt": "a red cat", "steps": STEPS, "seed": 7, "clip": False, "profile": "diffusers"} | what
    spec = SampleSpec(pack=folder.name, guidance=guidance, **asked)
    with Engine([str(folder)], precision="float32", calibrate=fixed_calibration) as engine:
        [picture] = engine.generate([spec])
    return picture.astype(int)


def base_of(pipeline: Any, folder: Path, *, weights: bool) -> Path:
    """The pipeline's folder, without weights so that none can come from it."""
    pipeline.save_pretrained(folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"cynosure": {"latent_size": SIDE}}))
    if "Flux" not in type(pipeline).__name__:
        index.write_text(json.dumps(json.loads(index.read_text()) | {"cynosure": {"steps": STEPS}}))
    if not weights:
        for path in folder.rglob("*.safetensors"):
            path.unlink()
    return folder


@pytest.mark.parametrize("case", CASES)
def test_an_imported_file_draws_what_its_pipeline_draws(case: str, tmp_path: Path) -> None:
    build, write, says = CASES[case]
    pipeline = build()
    file, out = tmp_path / "model.safetensors", tmp_path / "out"
    save_file(write(pipeline), file)
    base = base_of(build(), tmp_path / "base", weights=write is flux_alone)
    if case == "XL v":
        scheduler = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False, "timestep_spacing": "leading"}
        edit(base / "scheduler/scheduler_config.json", **scheduler)
    said: list[str] = []
    with layouts.narrow():
        import_file(file, out, str(base), said.append)
    assert all(any(line.startswith(start) for line in said) for start in says), said
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    for component in (name, "vae"):
        written = load_file(out / component / "diffusion_pytorch_model.safetensors")
        same(written, getattr(pipeline, component).state_dict())
        with layouts.narrow():
            theirs = type(getattr(pipeline, component))
            if write is not flux_alone or component == name:
                same(written, theirs.from_single_file(str(file), config=str(base), subfolder=component).state_dict())
    what = {"sampler": "flow_euler"} if name == "transformer" else {}
    if isinstance(pipeline, FluxPipeline):
        what["negative_prompt"] = "dog"
    if case != "inpainting":  # which takes a picture, and is drawn in test_families.py
        assert np.abs(drawn(out, **what) - expected(pipeline)).max() <= 1


def same(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
