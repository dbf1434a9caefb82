"""Single files in the published layouts become folders that draw what the pipeline drew they were written from."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FluxPipeline,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from models.calibration.result import fixed_calibration
from models.denoisers import load_denoiser
from models.engine import Engine
from models.importing.errors import Unfit
from models.importing.single_files.__main__ import command
from models.importing.single_files.conversion import import_file
from models.noise import draw_noise
from models.pack import open_pack
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


def xl_in_v() -> Any:
    pipeline = stable_diffusion_xl()
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    return pipeline


def sd35() -> Any:
    """CLIP-L's projection is a unit matrix, as the published folder has it."""
    pipeline = stable_diffusion_3(t5=True)
    config = {**pipeline.transformer.config, "qk_norm": "rms_norm", "dual_attention_layers": (0,)}
    pipeline.register_modules(transformer=SD3Transformer2DModel.from_config(config).eval())
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
    "SD 3.5": (sd35, sd3_file, ["family: Stable Diffusion 3", "text_encoder_3: "]),
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
    assert np.abs(drawn(out, **what) - expected(pipeline)).max() <= 1


def same(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, Path]:
    """The tensors of a file of Stable Diffusion 1, and a base with other weights."""
    folder = tmp_path_factory.mktemp("sd1")
    return sd1_file(stable_diffusion()), base_of(stable_diffusion(), folder / "base", weights=True)


def test_half_precision_stays_and_what_lacks_comes_from_the_base(
    sd1: tuple[State, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, folder = sd1
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = shutil.copytree(folder, tmp_path / "cache/models--someone--tiny/snapshots" / commit)
    as_older_diffusers_wrote_it(snapshot / "vae/diffusion_pytorch_model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    base = f"someone/tiny@{commit}"
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    file, out = tmp_path / "half.safetensors", tmp_path / "out"
    save_file({name: tensor for name, tensor in halves.items() if not name.startswith("first_stage_model.")}, file)
    said: list[str] = []
    import_file(file, out, base, said.append)
    assert any(line.startswith("unet: float16, ") and line.endswith(f"from {file}") for line in said)
    assert any(line.startswith("vae: float32, ") and line.endswith(f"from {base}") for line in said)
    for component in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        assert {tensor.dtype for tensor in load_file(out / f"{component}.safetensors").values()} == {torch.float16}
    assert json.loads((out / "text_encoder/config.json").read_text())["dtype"] == "float16"
    assert np.abs(drawn(out) - expected(stable_diffusion())).max() <= 3


def as_older_diffusers_wrote_it(autoencoder: Path) -> None:
    """With the names of attention's projections that published folders still have."""
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(autoencoder)
    for name in list(tensors):
        for new, old in older.items():
            if f".{new}." in name:
                tensors[name.replace(f".{new}.", f".{old}.")] = tensors.pop(name)
    save_file(tensors, autoencoder, metadata={"format": "pt"})


def test_a_unet_for_inpainting_needs_no_base_of_its_own(sd1: tuple[State, Path], tmp_path: Path) -> None:
    tensors, base = sd1
    inpainting = unet(cross_attention_dim=32, in_channels=9)
    save_file(tensors | layouts.unet(inpainting), tmp_path / "model.safetensors")
    said: list[str] = []
    import_file(tmp_path / "model.safetensors", tmp_path / "out", str(base), said.append)
    assert said[0] == "family: Stable Diffusion 1, for inpainting"
    pack = open_pack(str(tmp_path / "out"))
    assert pack.index["_class_name"] == "StableDiffusionInpaintPipeline"
    denoiser = load_denoiser(pack, torch.device("cpu"))
    assert denoiser.sees_mask
    same(denoiser.network.state_dict(), inpainting.state_dict())


def test_a_component_that_neither_has_is_left_out_if_it_may_be(tmp_path: Path) -> None:
    pipeline, file = sd35(), tmp_path / "model.safetensors"
    base = base_of(pipeline, tmp_path / "base", weights=False)
    tensors = without("text_encoders.t5xxl.")(sd3_file(pipeline))
    save_file(tensors, file)
    said: list[str] = []
    import_file(file, tmp_path / "out", str(base), said.append)
    assert "text_encoder_3: in neither, and left out" in said
    pack = open_pack(str(tmp_path / "out"))
    assert pack.index["tokenizer_3"] == pack.index["text_encoder_3"] == [None, None]
    assert load_denoiser(pack, torch.device("cpu")).t5 is None
    save_file(without("first_stage_model.")(tensors), file)
    with pytest.raises(Unfit, match=r"has no vae, and neither has the base: .*vae has no weights as \.safetensors"):
        import_file(file, tmp_path / "other", str(base), said.append)


def test_large_components_are_written_in_shards(
    sd1: tuple[State, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, base = sd1
    save_file(tensors, tmp_path / "model.safetensors")
    monkeypatch.setattr("models.importing.single_files.folder.SHARD", "500KB")
    import_file(tmp_path / "model.safetensors", tmp_path / "out", str(base), lambda line: None)
    assert len(list((tmp_path / "out/unet").glob("diffusion_pytorch_model-*-of-*.safetensors"))) > 1
    assert np.abs(drawn(tmp_path / "out") - expected(stable_diffusion())).max() <= 1


def without(prefix: str) -> Callable[[State], State]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}


def only(prefix: str, stripped: str = "") -> Callable[[State], State]:
    return lambda tensors: {
        name.removeprefix(stripped): tensor for name, tensor in tensors.items() if name.startswith(prefix)
    }


def named(*names: str) -> Callable[[State], State]:
    return lambda tensors: {name: torch.zeros(2, 2) for name in names}


def inputs(channels: int) -> Callable[[State], State]:
    return lambda tensors: tensors | {f"{DENOISER}input_blocks.0.0.weight": torch.zeros(32, channels, 3, 3)}


NO_FILES: dict[str, tuple[Callable[[State], State], str]] = {
    "a LoRA": (named("lora_unet_down_blocks_0_attentions_0.lora_down.weight"), "is a LoRA"),
    "a LoRA of Flux": (named("double_blocks.0.img_attn.qkv.lora_A.weight"), "is a LoRA"),
    "an autoencoder": (only("first_stage_model.", "first_stage_model."), r"is a lone autoencoder \(VAE\)"),
    "a text encoder": (only("cond_stage_model.", "cond_stage_model.transformer."), "is a lone text encoder"),
    "a ControlNet": (lambda tensors: tensors | named("control_model.time_embed.0.weight")({}), "is a ControlNet"),
    "an embedding": (named("emb_params"), r"is an embedding"),
    "a denoiser in diffusers' layout": (named("down_blocks.0.resnets.0.conv1.weight"), "in diffusers' layout"),
    "another family": (named("model.diffusion_model.cap_embedder.0.weight"), "of type lumina2, which is not served"),
    "nothing known": (named("weights"), "holds no denoiser of a known family; served: Stable Diffusion 1, "),
    "a depth model": (inputs(5), "UNet of 5 input channels"),
    "a refiner": (
        lambda tensors: (
            tensors | named(f"{DENOISER}label_emb.0.0.weight", "conditioner.embedders.0.model.ln_final.weight")({})
        ),
        "is the refiner of Stable Diffusion XL",
    ),
    "XL": (
        lambda tensors: tensors | named(f"{DENOISER}label_emb.0.0.weight")({}),
        "is a Stable Diffusion XL, and the base .* is a Stable Diffusion 1; a base that fits: stabilityai/.*xl-base",
    ),
    "an incomplete one": (
        without(f"{DENOISER}middle_block.0.in_layers"),
        r"its unet does not fit the configuration of .*: it lacks mid_block.resnets.0.conv1.bias and 3 more",
    ),
    "one of another size": (
        lambda tensors: tensors | {f"{DENOISER}time_embed.0.bias": torch.zeros(3)},
        r"its unet does not fit .* another shape of time_embedding.linear_1.bias; choose the base",
    ),
    "a quantized one": (
        lambda tensors: tensors | {f"{DENOISER}time_embed.0.bias": torch.zeros(128, dtype=torch.uint8)},
        r"quantized \(time_embedding.linear_1.bias is torch.uint8\)",
    ),
    "one with scales": (
        lambda tensors: tensors | named(f"{DENOISER}time_embed.0.scale_weight")({}),
        "is quantized, with scales of its own",
    ),
    "EDM": (lambda tensors: tensors | named("edm_vpred.sigma_max")({}), "EDM's noise levels"),
    "zero terminal SNR for PNDM": (lambda tensors: tensors | named("ztsnr")({}), "PNDMScheduler .* no such schedule"),
}


@pytest.mark.parametrize("fault", NO_FILES)
def test_what_can_not_be_imported_is_refused_in_a_line(fault: str, sd1: tuple[State, Path], tmp_path: Path) -> None:
    (tensors, base), (change, says) = sd1, NO_FILES[fault]
    if "PNDM" in fault:
        base = shutil.copytree(base, tmp_path / "base")
        edit(base / "model_index.json", scheduler=["diffusers", "PNDMScheduler"])
    save_file(change(tensors), tmp_path / "model.safetensors")
    with pytest.raises(Unfit, match=says) as refusal:
        import_file(tmp_path / "model.safetensors", tmp_path / "out", str(base), lambda line: None)
    assert "\n" not in str(refusal.value)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_files_of_other_formats_are_refused_with_the_remedy(sd1: tuple[State, Path], tmp_path: Path) -> None:
    tensors, base = sd1
    whole, out = tmp_path / "whole.safetensors", tmp_path / "out"
    save_file(tensors, whole)
    contents = {
        "cut.safetensors": (whole.read_bytes()[:100_000], "no complete safetensors file .* download it again"),
        "page.safetensors": (b"<!DOCTYPE html><title>Sign in</title>", "is a web page"),
        "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "model.gguf": (b"GGUF" + bytes(60), "is a GGUF file"),
        "empty.safetensors": (b"", "no complete safetensors file"),
    }
    for name, (content, says) in contents.items():
        (tmp_path / name).write_bytes(content)
        answer = CliRunner().invoke(command, [str(tmp_path / name), str(out), "--base", str(base)])
        assert answer.exit_code == 1
        assert answer.output.count("\n") == 1
        assert re.search(f"^cynosure import: .*{says}", answer.output)


def test_a_pickle_is_refused_with_a_command_that_converts_it(sd1: tuple[State, Path], tmp_path: Path) -> None:
    tensors, base = sd1
    torch.save({"state_dict": tensors, "callbacks": {"last": tmp_path}}, tmp_path / "model.ckpt")
    with pytest.raises(Unfit, match=r"is a pickle, .* convert it: ") as refusal:
        import_file(tmp_path / "model.ckpt", tmp_path / "out", str(base), lambda line: None)
    line = str(refusal.value).partition("convert it: ")[2]
    subprocess.run(line, shell=True, check=True, timeout=120)
    same(load_file(tmp_path / "model.safetensors"), tensors)


def test_without_a_base_the_base_is_named(sd1: tuple[State, Path], tmp_path: Path) -> None:
    save_file(sd1[0], tmp_path / "model.safetensors")
    with pytest.raises(Unfit, match=r"is a Stable Diffusion 1, .* --base stable-diffusion-v1-5/stable-diffusion-v1-5@"):
        import_file(tmp_path / "model.safetensors", tmp_path / "out", None, lambda line: None)


def test_a_folder_is_written_whole_or_not_at_all(
    sd1: tuple[State, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, base = sd1
    file, out = tmp_path / "model.safetensors", tmp_path / "models" / "out"
    save_file(tensors, file)
    out.mkdir(parents=True)
    command_line = [str(file), str(out), "--base", str(base)]
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 0))  # type: ignore[attr-defined]
        answer = CliRunner().invoke(command, command_line)
        assert answer.exit_code == 1
        assert "has 0.0 GB free, and the folder needs" in answer.output
    with monkeypatch.context() as patch:
        patch.setattr("models.importing.single_files.folder.save_file", full)
        answer = CliRunner().invoke(command, command_line)
        assert answer.exit_code == 1
        assert "the disk is full" in answer.output
    assert [*out.parent.iterdir()] == [out]
    answer = CliRunner().invoke(command, command_line)
    assert answer.exit_code == 0, "an empty folder is no obstacle"
    assert answer.output.endswith(f"wrote {out}; serve it with: cynosure up --models {out}\n")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    answer = CliRunner().invoke(command, command_line)
    assert answer.exit_code == 1
    assert "exists and is not empty" in answer.output
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def full(*_: Any, **__: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
