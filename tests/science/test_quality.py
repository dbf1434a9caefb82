"""The bundled packs draw what they are asked for, as a classifier sees it that had no part in drawing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from models.calibration.result import fixed_calibration
from models.classifiers import load_judge
from models.engine import Engine
from models.evaluation.measures import recognised
from models.evaluation.prompts import Question, Reference, Setting, found, questions, specs_of
from models.pack import PACKS_FOLDER, open_pack
from models.spec import Guidance, Lora, SampleSpec

FASHION, EMOJI = open_pack("fashion"), open_pack("emoji")
REFERENCE = Reference.of(EMOJI)
QUESTIONS = {part: asked[:24] for part, asked in questions(REFERENCE, count=24).items()}
LABELS = [index % len(FASHION.labels) for index in range(60)]
FREE = Guidance(free_scale=EMOJI.defaults["guidance_scale"])
PRESSED = replace(FREE, classifier_scale=EMOJI.defaults["classifier_scale"])
CLASSES = {
    "classifier_free": partial(SampleSpec, guidance=Guidance(free_scale=3.0), sampler="dpmpp_2m", steps=8),
    "classifier, unconditional base": partial(
        SampleSpec, guidance=Guidance(classifier_scale=10.0, conditional=False), sampler="dpmpp_2m", steps=12
    ),
}
PROMPTS = {
    "names": ("names", Setting(guidance=FREE)),
    "other words": ("other words", Setting(guidance=FREE)),
    "names, no style": ("names", Setting(guidance=FREE, told=False)),
    "names, style by the classifier": ("names", Setting(guidance=PRESSED, told=False)),
    "names, style and classifier": ("names", Setting(guidance=PRESSED)),
}
QUICKLY = {"sampler": "dpmpp_2m", "steps": 8}  # of prompts: with the pack's own, the shares below are hardly others
INK = {"with ink": (Lora("ink"),), "with half of ink": (Lora("ink", 0.5),)}
INKED = 12  # of the questions whose pictures have no style told


@pytest.fixture(scope="module")
def drawn() -> dict[str, Tensor]:
    """All pictures (N,C,H,W) that are judged here, by what they were drawn with; drawn together."""
    specs = {
        name: [spec(pack="fashion", label=label, image_index=index) for index, label in enumerate(LABELS)]
        for name, spec in CLASSES.items()
    }
    prompted = {name: specs_of(EMOJI, QUESTIONS[part], setting) for name, (part, setting) in PROMPTS.items()}
    specs |= {name: [replace(spec, **QUICKLY) for spec in some] for name, some in prompted.items()}
    shown = specs["names, no style"][:INKED]
    specs |= {name: [replace(spec, loras=loras) for spec in shown] for name, loras in INK.items()}
    calibrate = partial(fixed_calibration, lanes=2, rows=16)
    with Engine(["fashion", "emoji"], loras=PACKS_FOLDER.parent / "loras", calibrate=calibrate) as engine:
        pictures = iter(engine.generate([spec for some in specs.values() for spec in some]))
    return {
        name: torch.stack([torch.from_numpy(next(pictures)) for _ in some]).permute(0, 3, 1, 2)
        for name, some in specs.items()
    }


def styles_of(asked: list[Question]) -> Tensor:
    return torch.tensor([question.style for question in asked])


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("classifier_free", 0.97),
        ("classifier, unconditional base", 0.93),  # of 500 it is 96 %: the model card
    ],
)
def test_guidance_draws_the_class_that_was_asked_for(drawn: dict[str, Tensor], name: str, share: float) -> None:
    assert recognised(load_judge(FASHION), drawn[name], torch.tensor(LABELS)) >= share


@pytest.mark.parametrize(("part", "share"), [("names", 0.8), ("other words", 0.6)])
def test_a_prompt_draws_what_it_says_in_the_style_that_is_asked_for(
    drawn: dict[str, Tensor], part: str, share: float
) -> None:
    asked = QUESTIONS[part]
    assert found(REFERENCE, drawn[part], asked) >= share
    assert recognised(load_judge(EMOJI), drawn[part], styles_of(asked)) >= 0.7  # of real pictures it is 89 %


def test_the_classifier_moves_the_style_to_the_one_asked_for(drawn: dict[str, Tensor]) -> None:
    styles, judge = styles_of(QUESTIONS["names"]), load_judge(EMOJI)
    left_alone, by_classifier, both = (
        recognised(judge, drawn[name], styles)
        for name in ("names, no style", "names, style by the classifier", "names, style and classifier")
    )
    assert by_classifier >= left_alone + 0.15
    assert both >= 0.85


def test_the_bundled_lora_draws_black_on_white(drawn: dict[str, Tensor]) -> None:
    plain = drawn["names, no style"][:INKED].float()
    half, ink = (drawn[name].float() for name in ("with half of ink", "with ink"))

    def colour(pictures: Tensor) -> float:
        """Mean difference between the strongest and the weakest channel."""
        return float((pictures.amax(1) - pictures.amin(1)).mean())

    def between(pictures: Tensor) -> float:
        """Share of the pixels that are neither near black nor near white."""
        grey = pictures.mean(1)
        return float(((grey > 64) & (grey < 192)).float().mean())

    assert colour(ink) < 0.3 * colour(plain)  # 0.22 for these prompts
    assert colour(ink) < colour(half) < colour(plain)
    assert between(ink) < 0.5 * between(plain)  # 0.34
