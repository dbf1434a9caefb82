"""Evaluates a class-conditional pack: recognition by the judge, and Fréchet distance to real pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.classifiers import load_judge
from models.engine import Engine
from models.evaluation.measures import frechet_distance, recognised
from models.pack import Pack
from models.spec import Guidance, SampleSpec

SETTINGS: Mapping[str, Guidance] = {
    "none": Guidance(),
    "classifier_free w=1.5": Guidance(free_scale=1.5),
    "classifier_free w=2": Guidance(free_scale=2.0),
    "classifier_free w=3": Guidance(free_scale=3.0),
    "classifier s=2, unconditional base": Guidance(classifier_scale=2.0, conditional=False),
    "classifier s=5, unconditional base": Guidance(classifier_scale=5.0, conditional=False),
    "classifier s=10, unconditional base": Guidance(classifier_scale=10.0, conditional=False),
    "classifier s=5, conditional base": Guidance(classifier_scale=5.0),
}


def draw(engine: Engine, pack: str, guidance: Guidance, *, count: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Draw `count` pictures (N,1,H,W), cycling through the classes; returns them and their labels (N,)."""
    labels = [index % num_classes for index in range(count)]
    specs = [
        SampleSpec(pack=pack, label=label, guidance=guidance, steps=50, seed=0, image_index=index)
        for index, label in enumerate(labels)
    ]
    pictures = [torch.from_numpy(picture) for picture in engine.generate(specs)]
    return torch.stack(pictures).permute(0, 3, 1, 2), torch.tensor(labels)


def measured(pack: Pack, *, count: int, only: str) -> Iterator[str]:
    """Yield a table's lines: a row for each setting whose name contains `only`, measured on `count` pictures."""
    judge = load_judge(pack)
    reference = load_file(pack.component("judge") / "reference.safetensors")
    (mean, other_mean), (covariance, other_covariance) = reference["mean"], reference["covariance"]
    halves = frechet_distance(mean, covariance, other_mean, other_covariance)
    yield f"{'setting':<36} {'recognised':>10} {'Fréchet distance':>17}"
    yield f"{'real test pictures (half to half)':<36} {float(reference['recognised']):>10.1%} {halves:>17.3f}"
    with Engine([pack]) as engine:
        for name, guidance in SETTINGS.items():
            if only not in name or (guidance.classifier_scale and not pack.has_classifier):
                continue
            pictures, labels = draw(engine, pack.name, guidance, count=count, num_classes=len(pack.labels))
            with torch.inference_mode():
                features = judge.features(pictures).double()
            distance = frechet_distance(features.mean(0), features.T.cov(), mean, covariance)
            yield f"{name:<36} {recognised(judge, pictures, labels):>10.1%} {distance:>17.3f}"
