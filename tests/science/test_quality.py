"""The bundled packs draw what they are asked for, as a classifier sees it that had no part in drawing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from models.classifiers import load_judge
from models.engine import Engine
from models.evaluation.measures import recognised
from models.evaluation.prompts import Reference, Setting, draw, found, questions
from models.loading import open_pack
from models.spec import Guidance, SampleSpec


@pytest.mark.parametrize(
    ("guidance", "share"),
    [
        (Guidance(free_scale=3.0), 0.97),
        (Guidance(classifier_scale=10.0, conditional=False), 0.93),  # of 500 it is 96 %: the model card
    ],
    ids=["classifier_free", "classifier, unconditional base"],
)
def test_guidance_draws_the_class_that_was_asked_for(guidance: Guidance, share: float) -> None:
    pack = open_pack("fashion")
    labels = [index % len(pack.labels) for index in range(100)]
    specs = [
        SampleSpec(pack="fashion", label=label, guidance=guidance, steps=25, image_index=index)
        for index, label in enumerate(labels)
    ]
    with Engine(["fashion"]) as engine:
        pictures = torch.stack([torch.from_numpy(picture) for picture in engine.generate(specs)]).permute(0, 3, 1, 2)
    assert recognised(load_judge(pack), pictures, torch.tensor(labels)) >= share


@pytest.fixture(scope="module")
def emoji() -> Iterator[Engine]:
    with Engine(["emoji"]) as engine:
        yield engine


@pytest.mark.parametrize(("part", "share"), [("names", 0.8), ("other words", 0.6)])
def test_a_prompt_draws_what_it_says_in_the_style_that_is_asked_for(emoji: Engine, part: str, share: float) -> None:
    pack = emoji.packs["emoji"]
    reference, judge = Reference.of(pack), load_judge(pack)
    asked = questions(reference, count=40)[part][:40]
    styles = torch.tensor([question.style for question in asked])
    pictures = draw(emoji, pack, asked, Setting(guidance=Guidance(free_scale=pack.defaults["guidance_scale"])))
    assert found(reference, pictures, asked) >= share
    assert recognised(judge, pictures, styles) >= 0.7  # of real pictures it is 89 %


def test_the_classifier_moves_the_style_to_the_one_asked_for(emoji: Engine) -> None:
    pack = emoji.packs["emoji"]
    reference, judge = Reference.of(pack), load_judge(pack)
    asked = questions(reference, count=40)["names"]
    styles = torch.tensor([question.style for question in asked])
    prompted = Guidance(free_scale=pack.defaults["guidance_scale"])
    pressed = replace(prompted, classifier_scale=pack.defaults["classifier_scale"])

    def share(setting: Setting) -> float:
        return recognised(judge, draw(emoji, pack, asked, setting), styles)

    left_alone, by_classifier = (share(Setting(guidance=guidance, told=False)) for guidance in (prompted, pressed))
    assert by_classifier >= left_alone + 0.15
    assert share(Setting(guidance=pressed)) >= 0.85
