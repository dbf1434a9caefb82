"""Folders that people bring: served if they hold exactly what will be run, else refused in one line that says why."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from models.calibration import fixed_calibration
from models.denoisers import load_denoiser
from models.engine import Engine
from models.noise import draw_noise
from models.pack import PACKS_FOLDER, InvalidPack, open_pack, open_packs
from models.samplers import shifted
from models.spec import Guidance, SampleSpec
from tests.science.test_families import SCALE, SIDE, STEPS, saved, stable_diffusion, stable_diffusion_xl, unet

NOBODY = 65534
SCHEDULER = "scheduler/scheduler_config.json"
UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    _, folder = saved(stable_diffusion, tmp_path_factory.mktemp("whole"))
    return folder


def drawn(folder: Path, scale: float | None = SCALE) -> np.ndarray:
    spec = SampleSpec(
        pack=folder.name, prompt="a red cat", steps=STEPS, seed=7, profile="diffusers", clip=False,
        guidance=Guidance(free_scale=scale),
    )  # fmt: skip
    with Engine([str(folder)], precision="float32", calibrate=fixed_calibration) as engine:
        [picture] = engine.generate([spec])
    return picture


def weights(change: Callable[[dict[str, torch.Tensor]], object], file: str = UNET) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file, metadata={"format": "pt"})

    return edit


def _named(tensors: dict[str, torch.Tensor], end: str) -> str:
    return next(name for name in tensors if name.endswith(end))


def config(file: str, **changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(values | changes))

    return edit


def contents(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(content)


def gone(name: str) -> Callable[[Path], object]:
    return lambda folder: shutil.rmtree(folder / name)


def folder_for(file: str) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return edit


def tiny_autoencoder(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    AutoencoderTiny(
        encoder_block_out_channels=(32, 32), decoder_block_out_channels=(32, 32), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(folder / "vae")  # fmt: skip


def wider_latents(folder: Path) -> None:
    config = dict(AutoencoderKL.load_config(folder / "vae"))
    AutoencoderKL.from_config(config | {"latent_channels": 8}).save_pretrained(folder / "vae")


def pickled(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.bin")


def two_variants(folder: Path) -> None:
    shutil.copy(folder / UNET, folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.bf16.safetensors")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a weight is missing": (
        weights(lambda tensors: tensors.pop("conv_in.bias")),
        r"unet: its weights lack .*conv_in.b",
    ),
    "a layer of text is missing": (
        weights(lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1.mlp" in name], TEXT),
        r"text_encoder: its weights lack .*layers.1.mlp.* and 3 more",
    ),
    "a weight is not read": (weights(lambda tensors: tensors.update(extra=torch.zeros(2))), r"more than the .*extra"),
    "a weight has another shape": (
        weights(lambda tensors: tensors.update({"conv_in.bias": torch.zeros(3)})),
        r"unet: its weights have other shapes than .*conv_in.bias",
    ),
    "a weight of text has another shape": (
        weights(lambda tensors: tensors.update({_named(tensors, "final_layer_norm.bias"): torch.zeros(3)}), TEXT),
        r"text_encoder: its weights have other shapes than .*final_layer_norm.bias",
    ),
    "another class by its config": (config("unet/config.json", _class_name="UNet2DModel"), r"of class UNet2DModel"),
    "another class by the index": (
        config("model_index.json", vae=["diffusers", "AutoencoderTiny"]),
        r"its vae is of class AutoencoderTiny",
    ),
    "another class in its folder": (tiny_autoencoder, r"vae.* of class AutoencoderTiny"),
    "T5 for CLIP": (config("model_index.json", text_encoder=["transformers", "T5EncoderModel"]), "T5EncoderModel"),
    "pickles": (pickled, r"unet has diffusion_pytorch_model.bin .* convert the folder and serve the copy: .*python"),
    "no weights": (lambda folder: (folder / UNET).unlink(), r"unet has no weights as .safetensors"),
    "two variants": (two_variants, r"several variants \(bf16, fp16\)"),
    "a pointer to weights": (contents(UNET, b"version https://git-lfs.github.com/spec/v1\n"), r"unet .*git-lfs"),
    "cut off": (contents(UNET, b"\x00" * 4000), r"unet can't be loaded"),
    "no autoencoder": (gone("vae"), r"vae has no config.json"),
    "no tokenizer": (gone("tokenizer"), r"tokenizer"),
    "no sample_size": (config("unet/config.json", sample_size=None), r"no sample_size"),
    "an index that is cut off": (contents("model_index.json", b'{"a": '), r"model_index.json is not valid JSON"),
    "an index that is a list": (contents("model_index.json", b"[]"), r"must hold a JSON object, not a list"),
    "a component that is no class": (config("model_index.json", unet="x"), r"model_index.json: unet must be a library"),
    "a scheduler that is no class": (
        config("model_index.json", scheduler="x"),
        r"model_index.json: scheduler must be a",
    ),
    "no number of timesteps": (
        config(SCHEDULER, num_train_timesteps=None),
        r"scheduler_config.json: num_train_timesteps",
    ),
    "an unknown prediction": (
        config(SCHEDULER, prediction_type="x"),
        r"scheduler_config.json: prediction_type .*'sample'",
    ),
    "no number for a factor": (config("vae/config.json", scaling_factor="x"), r"spoilt can't be served; .* ValueError"),
    "a folder for a file": (folder_for("unet/config.json"), r"unet has no config.json"),
    "labels with a gap": (config("model_index.json", id2label={"5": "x"}), r"id2label .* without a gap"),
    "a key of no class": (
        config("vae/config.json", scale_factor=0.5),
        r"vae/config.json: scale_factor is 0.5, and no such key is read here; leave it out",
    ),
    "a mean that the pipeline does not take off": (
        config("vae/config.json", latents_mean=[0, 0, 0, 1]),
        r"vae/config.json: latents_mean is \[0, 0, 0, 1\]; served: null",
    ),
    "masked text": (
        config("text_encoder/config.json", use_attention_mask=True),
        r"text_encoder/config.json: use_attention_mask is true; served: false, null",
    ),
    "a pipeline that does more": (
        config("model_index.json", _class_name="StableDiffusionGLIGENPipeline"),
        r"_class_name is StableDiffusionGLIGENPipeline; served: .*StableDiffusionPipeline",
    ),
    "a component that would not be run": (
        config("model_index.json", controlnet=["diffusers", "ControlNetModel"]),
        r"model_index.json: controlnet is \[.*\], and no such key",
    ),
    "a component that is null": (config("model_index.json", vae=[None, None]), r"vae is null; served: AutoencoderKL"),
    "a default of no name": (
        config("model_index.json", cynosure={"guidance": 3}),
        r"model_index.json: cynosure: guidance is 3, and no such key",
    ),
    "a scale that is no input": (
        config("model_index.json", cynosure={"distilled_guidance": 3.5}),
        r"cynosure.distilled_guidance is set, and the UNet2DConditionModel takes no guidance scale",
    ),
    "other latents": (wider_latents, r"denoises 4 channels, and the latents of its vae have 8 \(latent_channels\)"),
    "more tokens than positions": (
        config("tokenizer/tokenizer_config.json", model_max_length=99),
        r"tokenizer_config.json: model_max_length is 99; its text encoder has 16 positions",
    ),
    "no scheduler": (gone("scheduler"), r"no scheduler/scheduler_config.json"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_folder_that_is_not_what_it_says_is_refused_in_a_line(fault: str, whole: Path, tmp_path: Path) -> None:
    spoil, says = REFUSED[fault]
    folder = shutil.copytree(whole, tmp_path / "spoilt")
    spoil(folder)
    with pytest.raises(InvalidPack, match=says) as refusal:
        Engine([str(folder)], calibrate=fixed_calibration).close()
    assert "\n" not in str(refusal.value)


def half_precision_variant(folder: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in load_file(folder / UNET).items()}
    save_file(tensors, folder / "unet/diffusion_pytorch_model.fp16.safetensors", metadata={"format": "pt"})
    (folder / UNET).unlink()


def in_shards(folder: Path, variant: str | None = None) -> None:
    for component, network in (("unet", UNet2DConditionModel), ("text_encoder", CLIPTextModel)):
        loaded = network.from_pretrained(folder / component)
        shutil.rmtree(folder / component)
        loaded.save_pretrained(folder / component, max_shard_size="50KB", variant=variant)
        assert len(list((folder / component).glob("*-of-*.safetensors"))) > 1
        assert not list((folder / component).glob("*model.safetensors"))


def in_shards_of_a_variant(folder: Path) -> None:
    in_shards(folder, "fp16")


def in_shards_of_an_old_variant(folder: Path) -> None:
    in_shards_of_a_variant(folder)
    for index in folder.rglob("*.index*.json"):
        places = json.loads(index.read_text())
        for name, file in places["weight_map"].items():
            older = file.replace(".fp16-", "-").replace(".safetensors", ".fp16.safetensors")
            places["weight_map"][name] = older
            if (index.parent / file).exists():
                (index.parent / file).rename(index.parent / older)
        index.write_text(json.dumps(places))


def beside_another_variant(folder: Path) -> None:
    in_shards(folder)
    (folder / UNET.replace(".safetensors", ".fp16.safetensors")).write_bytes(b"not read")


def with_components_that_are_not_run(folder: Path) -> None:
    extras = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    }
    config("model_index.json", **extras, requires_safety_checker=True)(folder)
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker/pytorch_model.bin").write_bytes(b"not read")


def with_byte_order_mark(folder: Path) -> None:
    index = folder / "model_index.json"
    index.write_bytes(b"\xef\xbb\xbf" + index.read_bytes())


def without_defaults(folder: Path) -> None:
    file = folder / SCHEDULER
    values = json.loads(file.read_text())
    for name in ("num_train_timesteps", "prediction_type"):
        values.pop(name)
    file.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "change",
    [
        half_precision_variant,
        in_shards,
        in_shards_of_a_variant,
        in_shards_of_an_old_variant,
        beside_another_variant,
        with_components_that_are_not_run,
        with_byte_order_mark,
        without_defaults,
    ],
)
def test_what_diffusers_opens_is_opened(change: Callable[[Path], None], whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "other")
    change(folder)
    far = np.abs(drawn(folder).astype(int) - drawn(whole).astype(int)).max()
    assert far <= (2 if change is half_precision_variant else 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (config("model_index.json", scheduler=["diffusers", "EDMEulerScheduler"]), "'EDMEulerScheduler' is for"),
        (config("model_index.json", scheduler=["diffusers", "NoSuchScheduler"]), "has no scheduler 'NoSuchScheduler'"),
        (
            config("scheduler/scheduler_config.json", beta_schedule="laplace"),
            "beta schedule 'laplace' is not supported",
        ),
        (config("scheduler/scheduler_config.json", trained_betas=[0.1] * 9), "its betas must be num_train_timesteps"),
    ],
)
def test_a_noise_schedule_that_can_not_be_known_is_refused(
    change: Callable[[Path], None], reason: str, whole: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole, tmp_path / "other")
    change(folder)
    with pytest.raises(InvalidPack, match=f"scheduler_config.json: .*{reason}"):
        drawn(folder)


def wide() -> object:
    pipeline = stable_diffusion()
    pipeline.unet.register_to_config(sample_size=[SIDE, SIDE + 4])
    return pipeline


def standardized() -> object:
    pipeline = stable_diffusion_xl()
    mean, deviation = [-1.6, 1.8, -1.3, 2.5], [8.4, 5.9, 6.5, 5.2]
    pipeline.vae.register_to_config(latents_mean=mean, latents_std=deviation, scaling_factor=0.5)
    return pipeline


def with_unet(**config: object) -> object:
    parts = stable_diffusion().components
    return StableDiffusionPipeline(**parts | {"unet": unet(**config)}, requires_safety_checker=False)


def projected() -> object:
    return with_unet(cross_attention_dim=48, encoder_hid_dim=32)


@pytest.mark.parametrize(("build", "width"), [(wide, SIDE + 4), (standardized, SIDE), (projected, SIDE)])
def test_what_a_config_says_beyond_the_usual_is_done_as_diffusers_does_it(
    build: Callable[[], object], width: int, tmp_path: Path
) -> None:
    pipeline, folder = saved(build, tmp_path)
    with torch.inference_mode():
        expected = pipeline(
            "a red cat",
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            latents=draw_noise(7, 0, 0, (4, SIDE, width))[None],
            output_type="np",
            height=2 * SIDE,
            width=2 * width,
        ).images[0]
    assert np.abs(drawn(folder).astype(int) - (expected * 255).round().astype(int)).max() <= 1


def test_a_guidance_scale_that_the_network_takes_as_an_input_is_the_packs(tmp_path: Path) -> None:
    pipeline, folder = saved(lambda: with_unet(cross_attention_dim=32, time_cond_proj_dim=16), tmp_path)
    pictures = []
    for scale in (8.5, SCALE):
        with torch.inference_mode():
            expected = pipeline(
                "a red cat",
                num_inference_steps=STEPS,
                guidance_scale=scale,
                latents=draw_noise(7, 0, 0, (4, SIDE, SIDE))[None],
                output_type="np",
            ).images[0]
        pictures.append(drawn(folder, scale=None))
        assert np.abs(pictures[-1].astype(int) - (expected * 255).round().astype(int)).max() <= 1
        config("model_index.json", cynosure={"distilled_guidance": SCALE})(folder)
    assert (pictures[0] != pictures[1]).any()
    assert not load_denoiser(open_pack(str(folder)), torch.device("cpu")).has_null


@pytest.mark.parametrize(
    "change",
    [
        {"id2label": {"0": "boot", "1": "bag"}, "null_label": 99},
        {"id2label": {}},
        {"id2label": dict.fromkeys(map(str, range(12)), "a")},
    ],
    ids=["a null label of no class", "no names", "more names than classes"],
)
def test_labels_that_the_network_does_not_have_are_refused(
    change: dict[str, object], small_pack: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(small_pack, tmp_path / "spoilt")
    config("model_index.json", **change)(folder)
    with pytest.raises(InvalidPack, match=r"num_class_embeds is 11 in unet/config.json, but model_index.json names"):
        load_denoiser(open_pack(str(folder)), torch.device("cpu"))


def test_a_size_that_early_converters_wrote_is_read_as_diffusers_reads_it(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "early")
    config("unet/config.json", _diffusers_version="0.8.0")(folder)
    assert load_denoiser(open_pack(str(folder)), torch.device("cpu")).latent_shape == (4, 64, 64)


def test_a_folder_has_the_name_that_was_typed(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = shutil.copytree(whole, tmp_path / "fashion", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "my-model").symlink_to(own)
    assert open_pack(str(tmp_path / "my-model")).name == "my-model"
    monkeypatch.chdir(tmp_path)
    assert open_pack("./fashion").folder.resolve() == own.resolve(), "a path is no bundled pack's name"
    monkeypatch.chdir(own)
    assert open_pack(".").name == "fashion"
    (tmp_path / "a=b").mkdir()
    assert open_pack("bags=./../fashion").name == "bags"
    assert open_pack("./../fashion").name == open_pack(f"{tmp_path}/a=b/../fashion").name == "fashion"
    for malformed in ("=fashion", "bags="):
        with pytest.raises(InvalidPack, match="NAME=FOLDER"):
            open_pack(malformed)


def test_two_packs_of_one_name_are_refused_by_their_folders(whole: Path, tmp_path: Path) -> None:
    own = shutil.copytree(whole, tmp_path / "fashion", ignore=shutil.ignore_patterns("*.safetensors"))
    assert [pack.name for pack in open_packs(["fashion", f"mine={own}"])] == ["fashion", "mine"]
    with pytest.raises(InvalidPack, match=rf"'fashion': {PACKS_FOLDER}/fashion and {own};.* other-name={own}$"):
        open_packs(["fashion", str(own)])


@pytest.fixture
def without_privileges(tmp_path: Path) -> Iterator[None]:
    """If root runs the tests, who may read everything, be another user who owns the test's folder."""
    if os.geteuid() != 0:
        yield
        return
    folders = [tmp_path, *tmp_path.parents[:2]]
    modes = [folder.stat().st_mode for folder in folders]
    for folder in folders:
        folder.chmod(0o777)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        for folder, mode in zip(folders, modes, strict=True):
            folder.chmod(mode)


@pytest.mark.parametrize("hidden", [SCHEDULER, "scheduler", "."])
@pytest.mark.usefixtures("without_privileges")
def test_a_folder_that_may_not_be_read_is_named(hidden: str, tmp_path: Path) -> None:
    (tmp_path / "mine/scheduler").mkdir(parents=True)
    for file in ("model_index.json", SCHEDULER):
        (tmp_path / "mine" / file).write_text("{}")
    path = tmp_path / "mine" / hidden
    path.chmod(0)
    with pytest.raises(InvalidPack, match=rf"{tmp_path}/mine.*Permission denied"):
        open_pack(str(tmp_path / "mine"))
    path.chmod(0o700)


def test_a_shift_that_is_left_out_is_that_of_diffusers(whole: Path, tmp_path: Path) -> None:
    own = shutil.copytree(whole, tmp_path / "mine", ignore=shutil.ignore_patterns("*.safetensors"))
    shifts = []
    for values in ({}, dict(FlowMatchEulerDiscreteScheduler().config)):
        (own / SCHEDULER).write_text(json.dumps(values | {"use_dynamic_shifting": True}))
        shifts.append(shifted(open_pack(str(own)).scheduler_config, 64 * 64)["shift"])
    assert shifts[0] == shifts[1]
