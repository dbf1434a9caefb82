"""`python -m models.evaluation PACK`: how many pictures are recognised, and how far they are from real ones."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from models.engine import Engine
from models.evaluation.judge import Judge, JudgeTask, load_judge
from models.evaluation.measures import frechet_distance, recognised
from models.loading import open_pack
from models.spec import Guidance, SampleSpec
from models.training.data import FASHION_MNIST_FOLDER, LabelledImages, MissingData, load_fashion_mnist
from models.training.loop import LoopConfig, train

JUDGE_RUN = LoopConfig(
    steps=1_500,
    batch_size=128,
    learning_rate=2e-3,
    warmup_steps=100,
    decay_fraction=0.7,
    weight_decay=0.05,
    ema_decay=0.99,
    seed=2,
    checkpoint_every=500,
)
SETTINGS: dict[str, Guidance] = {
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
    """`count` pictures (N,1,H,W), the classes in turn, with their labels (N,)."""
    labels = [index % num_classes for index in range(count)]
    specs = [
        SampleSpec(pack=pack, label=label, guidance=guidance, steps=50, seed=0, image_index=index)
        for index, label in enumerate(labels)
    ]
    pictures = [torch.from_numpy(picture) for picture in engine.generate(specs)]
    return torch.stack(pictures).permute(0, 3, 1, 2), torch.tensor(labels)


def main() -> None:
    """Measure a pack with a judge trained on clean pictures."""
    parser = argparse.ArgumentParser(prog="cynosure evaluate", description=main.__doc__)
    parser.add_argument("pack", nargs="?", default="fashion")
    parser.add_argument("--count", type=int, default=500, help="pictures a setting")
    parser.add_argument("--data", type=Path, default=FASHION_MNIST_FOLDER, help="folder of the real pictures")
    parser.add_argument("--train-judge", action="store_true", help="train the judge first and keep it in the pack")
    arguments = parser.parse_args()
    pack = open_pack(arguments.pack)
    test: LabelledImages | None = None
    try:
        test = load_fashion_mnist("t10k", arguments.data)
        if arguments.train_judge:
            torch.manual_seed(JUDGE_RUN.seed)
            train(JudgeTask(Judge()), load_fashion_mnist("train", arguments.data), JUDGE_RUN, pack.folder, name="judge")
    except MissingData as error:
        if arguments.train_judge:
            sys.exit(f"cynosure evaluate: {error}")
        print(f"{error}\nWithout it there is no Fréchet distance.")
    judge = load_judge(pack.folder)
    print(f"{'setting':<36} {'recognised':>10} {'Fréchet distance':>17}")
    if test is not None:
        halves = frechet_distance(judge, test.images[:5000], test.images[5000:])
        print(f"{'real test pictures (two halves)':<36} {recognised(judge, test.images, test.labels):>10.1%} {halves:>17.3f}")
    with Engine([str(pack.folder)]) as engine:
        for name, guidance in SETTINGS.items():
            if guidance.classifier_scale and not pack.has_classifier:
                continue
            pictures, labels = draw(
                engine, pack.name, guidance, count=arguments.count, num_classes=len(pack.labels)
            )
            distance = "" if test is None else f"{frechet_distance(judge, pictures, test.images):.3f}"
            print(f"{name:<36} {recognised(judge, pictures, labels):>10.1%} {distance:>17}", flush=True)


if __name__ == "__main__":
    main()
