"""The dial: measures with known answers, and the command on a small pack."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from benchmarks.packs import letters_tokenizer
from models.evaluation.__main__ import command
from models.evaluation.features import ClipScore, features_named
from models.evaluation.measures import precision_and_recall, sharpness
from models.pack import InvalidPack
from models.training.own import classifying
from tests.science.own_pictures import classifier_run, write_pictures
from tests.science.test_own_families import write_unet2d


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("own") / "colours")


@pytest.fixture(scope="module")
def guided(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs")
    write_unet2d(folder / "pack")
    classifying.run(classifier_run(folder / "pack", colours, folder / "guided", robust=True), "the command")
    return folder / "guided"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**shape, "vocab_size": 54, "max_position_embeddings": 16, "eos_token_id": 1, "bos_token_id": 0},
        vision_config={**shape, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    letters_tokenizer(16).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"crop_size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    return folder


def test_precision_falls_with_what_is_unreal_and_recall_with_what_is_never_drawn() -> None:
    points = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).double()
    assert precision_and_recall(points, points) == (1.0, 1.0)
    assert precision_and_recall(points + 100, points) == (0.0, 0.0)
    near_one = points[:1] + 1e-3 * points
    precision, recall = precision_and_recall(near_one, points)
    assert precision == 1.0
    assert recall <= 0.02
    half_unreal = torch.cat([points[:100], points[:100] + 100])
    assert precision_and_recall(half_unreal, points)[0] == pytest.approx(0.5, abs=0.05)


def test_precision_and_recall_are_those_of_the_definition() -> None:
    drawn, real = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[0.0], [2.0], [4.0]])
    # Each real point's nearest other one is 2 away, so 5 is near 4; the drawn ones reach 1, 1 and 4.
    assert precision_and_recall(drawn, real, neighbours=1) == (1.0, 1.0)
    assert precision_and_recall(torch.tensor([[0.0], [1.0], [9.0]]), real, neighbours=1)[0] == pytest.approx(2 / 3)


def test_sharpness_is_one_for_no_idea_and_the_number_of_classes_for_certainty() -> None:
    assert sharpness(torch.zeros(30, 5)) == pytest.approx(1.0)
    certain = 100.0 * torch.eye(5).repeat(6, 1)
    assert sharpness(certain) == pytest.approx(5.0)
    assert sharpness(certain[:1].repeat(30, 1)) == pytest.approx(1.0)


def test_the_dial_is_printed_saved_and_plotted(
    guided: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("models.evaluation.references.JUDGE_STEPS", 2)
    saved, plot = tmp_path / "dial.json", tmp_path / "dial.png"
    options = ["-n", "6", "--steps", "2", "--scales", "1,4", "--json", str(saved), "--plot", str(plot), "--markdown"]
    command([str(guided), "--data", str(colours), *options], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "real, half to half" in printed
    assert "| classifier_alone | 4 |" in printed
    content = json.loads(saved.read_text())
    assert (content["count"], content["steps"], content["sampler"]) == (6, 2, "ddim")
    modes = [(point["mode"], point["scale"]) for point in content["points"]]
    guiding = ("classifier_free", "classifier", "classifier_alone", "combined")
    assert modes == [("none", None), *((mode, scale) for mode in guiding for scale in (1.0, 4.0))]
    for point in content["points"]:
        assert 0 <= point["accuracy"] <= 1
        assert 0 <= point["recall"] <= 1
        assert 1 <= point["sharpness"] <= 3 + 1e-6
        assert math.isfinite(point["frechet"])
    unguided, free_at_one = content["points"][0], content["points"][1]
    assert {**free_at_one, "mode": "none", "scale": None} == unguided  # w = 1 is the plain conditional model
    with Image.open(plot) as picture:
        assert picture.width > 1000
        assert np.asarray(picture.convert("RGB")).std() > 10

    content["points"] = [{**content["points"][0], "accuracy": 0.123}]
    saved.write_text(json.dumps(content))
    again = [str(guided), "--data", str(colours), "-n", "6", "--steps", "2", "--modes", "none,classifier"]
    plot.unlink()
    command([*again, "--scales", "4", "--json", str(saved), "--plot", str(plot)], standalone_mode=False)
    assert "12.3%" in capsys.readouterr().out  # what was measured before is not measured again
    assert [point["scale"] for point in json.loads(saved.read_text())["points"]] == [None, 4.0]
    assert plot.exists()
    assert "another measurement (steps 2, not 3): --force replaces it" in _refused(
        *again, "--steps", "3", "--json", str(saved)
    )
    assert "another measurement" in _refused(*again, "--precision", "int8", "--json", str(saved))
    saved.write_text("{}")
    assert "is not a measurement" in _refused(*again, "--json", str(saved))
    command([*again, "--modes", "none", "--json", str(saved), "--force"], standalone_mode=False)
    assert len(json.loads(saved.read_text())["points"]) == 1


def test_pictures_are_compared_with_a_reference_file_and_by_a_vision_model(
    guided: Path, colours: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    npz, saved = tmp_path / "reference.npz", tmp_path / "dial.json"
    np.savez(npz, arr_0=np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8))
    options = ["-n", "4", "--steps", "2", "--modes", "none", "--features", str(clip), "--json", str(saved)]
    command([str(guided), "--reference", str(npz), *options], standalone_mode=False)
    [point] = json.loads(saved.read_text())["points"]
    assert point["accuracy"] is None
    assert math.isfinite(point["frechet"])
    assert 0 <= point["precision"] <= 1
    np.savez(npz, mu=np.zeros(2048), sigma=np.eye(2048))
    assert "its statistics are of Inception" in _refused(str(guided), "--reference", str(npz), *options)


def test_a_clip_score_is_the_cosine_of_the_two_towers(clip: Path) -> None:
    pictures = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    prompts = ["a b", "c", "d e f"]
    network = CLIPModel.from_pretrained(clip).eval()
    tokens = letters_tokenizer(16)(prompts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        output = network(**tokens, pixel_values=(pictures / 255 - 0.5) / 0.5)
    cosines = torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds)
    assert ClipScore(str(clip))(pictures, prompts) == pytest.approx(100 * float(cosines.clamp(min=0).mean()), abs=1e-3)


def _refused(*arguments: str) -> str:
    with pytest.raises(SystemExit) as refusal:
        command(list(arguments), standalone_mode=False)
    return str(refusal.value.code)


def test_what_cannot_be_measured_is_refused(guided: Path, tmp_path: Path) -> None:
    assert "nothing to measure 'guided' with" in _refused(str(guided), "--modes", "none")
    assert "no sampler 'ddimm'" in _refused("fashion", "-n", "2", "--modes", "none", "--sampler", "ddimm")
    with pytest.raises(InvalidPack, match="there is no such file"):
        features_named("inception=nowhere.pth")
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"not they")
    with pytest.raises(InvalidPack, match=r"has SHA-256 .* not 1234"):
        features_named(f"inception={weights}@1234")
    with pytest.raises(InvalidPack, match="neither a folder nor owner/name@COMMIT"):
        features_named("google/vit-base")
