"""Published checkpoints become packs: strictly, and without running anything that is in the file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.calibration.result import fixed_calibration
from models.engine import Engine
from models.importing.adm import PRESETS, Preset, import_adm
from models.importing.errors import Unfit
from models.networks import AdmClassifier, AdmUNet
from models.parity import stand_ins
from models.spec import Guidance, InvalidSpec, Pixels, SampleSpec

TINY = Preset(unet=stand_ins.unet_config("legacy order"), classifier=stand_ins.classifier_config())


def checkpoint(network: torch.nn.Module, path: Path) -> Path:
    torch.save(stand_ins.filled(network).state_dict(), path)
    return path


@pytest.fixture
def unet_file(tmp_path: Path) -> Path:
    return checkpoint(AdmUNet(**TINY.unet), tmp_path / "diffusion.pt")


def test_an_imported_pack_is_served_guided(unet_file: Path, tmp_path: Path) -> None:
    classifier_file = checkpoint(AdmClassifier(**stand_ins.classifier_config()), tmp_path / "classifier.pt")
    out = tmp_path / "adm"
    import_adm(unet_file, out, TINY, classifier=classifier_file, labels=["a", "b", "c", "d"])
    assert not list(out.rglob("*.bin"))
    with Engine([str(out)], precision="float32", calibrate=fixed_calibration) as engine:
        assert engine.packs["adm"].pack.labels == ("a", "b", "c", "d")
        plain, guided = engine.generate(
            [
                SampleSpec(pack="adm", label=1, steps=5, profile="adm", guidance=Guidance(classifier_scale=scale))
                for scale in (0.0, 10.0)
            ]
        )
        assert plain.shape == (32, 32, 3)
        assert not np.array_equal(plain, guided)
        with pytest.raises(InvalidSpec, match="has no unconditional prediction; name a second one to guide by"):
            engine.submit(SampleSpec(pack="adm", label=1, guidance=Guidance(free_scale=3.0)))


def test_conditional_and_unconditional_networks_guide_together(unet_file: Path, tmp_path: Path) -> None:
    import_adm(unet_file, tmp_path / "conditional", TINY)
    preset = replace(TINY, unet=stand_ins.unet_config("no classes"))
    other = checkpoint(AdmUNet(**preset.unet), tmp_path / "unconditional.pt")
    import_adm(other, tmp_path / "unconditional", preset)
    with Engine(
        [str(tmp_path / "conditional"), str(tmp_path / "unconditional")],
        precision="float32",
        calibrate=fixed_calibration,
    ) as engine:
        pictures = engine.generate(
            [
                SampleSpec(
                    pack="conditional",
                    label=1,
                    steps=5,
                    profile="adm",
                    sampler=sampler,
                    guidance=Guidance(free_scale=scale, guide_pack="unconditional"),
                )
                for sampler in ("ddpm", "ddim")
                for scale in (1.0, 3.0)
            ]
        )
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[2], pictures[3])


def test_super_resolution_enlarges_a_picture(tmp_path: Path) -> None:
    preset = replace(TINY, unet=stand_ins.unet_config("super-resolution"))
    import_adm(checkpoint(AdmUNet(**preset.unet), tmp_path / "up.pt"), tmp_path / "up", preset)
    small = [Pixels.of(np.full((8, 8, 3), value, np.uint8)) for value in (0, 255)]
    with Engine([str(tmp_path / "up")], precision="float32", calibrate=fixed_calibration) as engine:
        with pytest.raises(InvalidSpec, match="needs an init_image"):
            engine.submit(SampleSpec(pack="up", label=1))
        dark, bright = engine.generate([SampleSpec(pack="up", label=1, steps=4, init_image=one) for one in small])
    assert dark.shape == (32, 32, 3)
    assert not np.array_equal(dark, bright)


def test_a_checkpoint_of_another_shape_is_refused(unet_file: Path, tmp_path: Path) -> None:
    with pytest.raises(Unfit, match="does not fit the preset"):
        import_adm(unet_file, tmp_path / "out", replace(TINY, unet=stand_ins.unet_config("no classes")))


def test_a_file_that_would_run_something_is_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save(Harmful(), tmp_path / "harmful.pt")
    with pytest.raises(Unfit, match="can't be read as a file of tensors"):
        import_adm(tmp_path / "harmful.pt", tmp_path / "out", TINY)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("imagenet64", 295.9),
        ("imagenet128", 421.5),
        ("imagenet256", 553.8),
        ("imagenet512", 559.0),
        ("imagenet64-256", 311.8),
        ("imagenet128-512", 308.8),
    ],
)
def test_published_configurations_have_the_published_number_of_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = AdmUNet(**PRESETS[name].unet)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize(
    ("name", "millions"), [("imagenet64", 65.4), ("imagenet128", 42.6), ("imagenet256", 54.1), ("imagenet512", 54.4)]
)
def test_published_classifiers_have_the_published_number_of_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = AdmClassifier(**(PRESETS[name].classifier or {}))
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
