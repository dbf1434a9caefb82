"""The bundled pack draws what it is asked for, as a classifier sees it that had no part in drawing."""

from __future__ import annotations

import pytest
import torch

from models.classifiers import load_judge
from models.engine import Engine
from models.evaluation.measures import recognised
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
        SampleSpec(pack="fashion", label=label, guidance=guidance, steps=50, image_index=index)
        for index, label in enumerate(labels)
    ]
    with Engine(["fashion"]) as engine:
        pictures = torch.stack([torch.from_numpy(picture) for picture in engine.generate(specs)]).permute(0, 3, 1, 2)
    assert recognised(load_judge(pack), pictures, torch.tensor(labels)) >= share
