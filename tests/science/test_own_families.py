"""Classifiers for the packs of every family, and their denoisers trained on: tiny networks, two steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTPipeline, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from safetensors.torch import load_file, save_file

from models.calibration.probes import stacked
from models.calibration.result import fixed_calibration
from models.classifiers import load_steering
from models.engine import Engine
from models.importing.adm import import_adm
from models.networks import AdmUNet
from models.networks.sentences import CAPTIONS_FILE
from models.pack import REFERENCES, InvalidPack, Pack, component_digest, open_pack
from models.spec import Guidance, SampleSpec
from models.training.emoji_recipe import EMOJI
from models.training.own import classifying, finetuning
from models.training.own.spaces import space_of
from models.training.own.target import refer
from tests.science.own_pictures import COLOURS, classifier_run, finetune_run, write_pictures
from tests.science.test_families import SIDE, autoencoder, scheduler, stable_diffusion, stable_diffusion_xl
from tests.science.test_importing import TINY, checkpoint
from tests.science.test_prompted import SMALL

CPU = torch.device("cpu")


def engine_shape(pack: Pack) -> tuple[int, int, int]:
    space = space_of(pack)
    return space.channels, space.side, space.side


def dit() -> DiTPipeline:
    torch.manual_seed(5)
    transformer = DiTTransformer2DModel(
        sample_size=SIDE,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=3,
        norm_type="ada_norm_zero",
    )
    return DiTPipeline(transformer, autoencoder(), scheduler())


def write_pipeline(build: Callable[[], Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        build().save_pretrained(folder)

    return write


def write_dit(folder: Path) -> None:
    dit().save_pretrained(folder)
    named(folder)


def named(folder: Path) -> None:
    """Name the classes after the pictures'."""
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {str(number): name for number, name in enumerate(COLOURS)}
    (folder / "model_index.json").write_text(json.dumps(index))


def write_adm(folder: Path) -> None:
    torch.manual_seed(0)
    file = checkpoint(AdmUNet(**{**TINY.unet, "num_classes": 3}), folder.parent / "adm.pt")
    preset = TINY.__class__(**{**vars(TINY), "unet": {**TINY.unet, "num_classes": 3}})
    import_adm(file, folder, preset, labels=list(COLOURS))


def write_unet2d(folder: Path) -> None:
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        in_channels=12,
        out_channels=12,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        num_class_embeds=4,
        resnet_time_scale_shift="scale_shift",
    )
    network.save_pretrained(folder / "unet")
    EMOJI.scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "ClassConditionalPixelPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "pixel_unshuffle": 2,
        "null_label": 3,
        "id2label": {str(number): name for number, name in enumerate(COLOURS)},
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def write_prompted(folder: Path) -> None:
    torch.manual_seed(0)
    UNet2DConditionModel(**SMALL).save_pretrained(folder / "unet")
    EMOJI.scheduler().save_pretrained(folder / "scheduler")
    save_file({"vectors": torch.eye(2, 384)}, folder / CAPTIONS_FILE)
    (folder / "model_index.json").write_text(json.dumps(EMOJI.model_index(with_classifier=False)))
    named(folder)


FAMILIES = {
    "ADM": write_adm,
    "UNet2D": write_unet2d,
    "prompted pixels": write_prompted,
    "DiT": write_dit,
    "Stable Diffusion 1": write_pipeline(stable_diffusion),
    "Stable Diffusion XL": write_pipeline(stable_diffusion_xl),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("own") / "colours")


@pytest.fixture(params=FAMILIES)
def pack(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "pack"
    FAMILIES[request.param](folder)
    return folder


def test_a_classifier_and_a_finetuned_denoiser_serve_with_the_packs_other_parts(
    pack: Path, pictures: Path, tmp_path: Path
) -> None:
    is_prompted = open_pack(str(pack)).family not in ("AdmUNet", "UNet2DModel", "DiTTransformer2DModel")
    tuned, steered = tmp_path / "tuned", tmp_path / "steered"
    finetuning.run(finetune_run(pack, pictures, tuned), "the command")
    [changed] = [name for name in ("unet", "transformer") if (tuned / name).is_dir()]
    before, after = (load_file(folder / changed / "diffusion_pytorch_model.safetensors") for folder in (pack, tuned))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name].half(), after[name]) for name in before)

    classifying.run(classifier_run(tuned, pictures, steered), "the command")
    own = {path.name for path in steered.iterdir()}
    assert own == {"README.md", "classifier", REFERENCES, "model_index.json", "training"}
    guided = open_pack(str(steered))
    assert guided.labels[:3] == tuple(COLOURS)
    plain = SampleSpec(pack="steered", label=1, prompt="green" if is_prompted else None, steps=2, clip=False)
    guided_too = replace(plain, guidance=Guidance(classifier_scale=2.0))
    with Engine([guided], precision="float32", calibrate=fixed_calibration) as engine:
        drawn, pulled = engine.generate([plain, guided_too])
    assert drawn.shape == pulled.shape
    steering = load_steering(guided, CPU)
    assert steering is not None
    x = torch.randn(2, *engine_shape(guided))
    gradient, _ = steering.gradient(x, torch.tensor([10.0, 500.0]), stacked(steering.examples()[:2], CPU))
    assert gradient.shape == x.shape
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_a_component_that_changed_is_noticed(pictures: Path, tmp_path: Path) -> None:
    pack, steered = tmp_path / "pack", tmp_path / "steered"
    write_unet2d(pack)
    classifying.run(classifier_run(pack, pictures, steered, start="denoiser"), "the command")
    first = open_pack(str(steered)).digest()
    assert open_pack(str(steered)).digest() == first
    config = pack / "unet" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(InvalidPack, match="unet is not what it was"):
        open_pack(str(steered)).digest()
    pack.rename(tmp_path / "elsewhere")
    with pytest.raises(InvalidPack, match=r"components.json: its pack '\.\./pack' is not there"):
        open_pack(str(steered))


def test_a_bundled_pack_and_one_on_the_hub_are_referred_to_by_name(tmp_path: Path) -> None:
    refer(tmp_path, open_pack("fashion"), "shoes=fashion", without=("classifier", "judge", "unet"))
    assert json.loads((tmp_path / REFERENCES).read_text())["pack"] == "fashion"
    pack = tmp_path / "pack"
    write_unet2d(pack)
    commit = "owner/name@" + 40 * "a"
    refer(tmp_path, open_pack(str(pack)), commit, without=("unet",))
    assert json.loads((tmp_path / REFERENCES).read_text())["pack"] == commit
    refer(tmp_path, open_pack(f"other={pack}"), f"other={pack}", without=("unet",))
    assert json.loads((tmp_path / REFERENCES).read_text()) == {
        "pack": "pack",
        "sha256": {"scheduler": component_digest(pack / "scheduler")},
    }


@pytest.mark.parametrize("name", ["ADM", "UNet2D", "prompted pixels"])
def test_a_classifier_may_start_as_the_denoisers_encoder(name: str, pictures: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    FAMILIES[name](pack)
    opened = open_pack(str(pack))
    network = classifying.from_denoiser(opened, space_of(opened), 3)
    weights = load_file(pack / "unet" / "diffusion_pytorch_model.safetensors")
    own = network.state_dict()
    shared = [key for key in own if key in weights and torch.equal(own[key], weights[key].float())]
    assert len(shared) > 0.7 * len(own)
