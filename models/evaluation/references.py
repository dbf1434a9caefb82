"""Real pictures that drawn ones are compared with: a folder's, ADM's reference file, or the pack's own."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.classifiers import Judge, load_judge
from models.configs import every_key
from models.evaluation.features import Features
from models.evaluation.measures import recognised
from models.loading import load_network
from models.pack import InvalidPack, Pack
from models.training.data import LabelledImages
from models.training.judge import JudgeTask
from models.training.loop import train
from models.training.own.pictures import Pictures
from models.training.own.presets import judge_channels, run_of

MOST = 10_000  # pictures of a folder that are compared with
JUDGE_STEPS = 1_000


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Statistics of real pictures.

    Attributes:
        mean, covariance: of the features (F,), (F,F).
        features: (N,F), or `None` if only statistics are known.
        recognised: share that the judge recognises, or `None`.
        halves: Fréchet distance between two halves of the pictures, or `None`.
    """

    mean: Tensor
    covariance: Tensor
    features: Tensor | None
    recognised: float | None = None
    halves: tuple[Tensor, Tensor, Tensor, Tensor] | None = None


def of_features(features: Tensor, *, share: float | None = None) -> Reference:
    """The reference of real pictures with these features (N,F)."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    first, second = (features[part] for part in order.chunk(2))
    halves = (first.mean(0), first.T.cov(), second.mean(0), second.T.cov()) if len(second) > 1 else None
    return Reference(
        mean=features.mean(0), covariance=features.T.cov(), features=features, recognised=share, halves=halves
    )


def of_pictures(images: Tensor, features: Features, judge: Judge | None, labels: Tensor | None) -> Reference:
    """The reference of `uint8` pictures (N,C,H,W), at most `MOST` of them."""
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:MOST]
    share = recognised(judge, images[chosen], labels[chosen]) if judge is not None and labels is not None else None
    return of_features(features(images[chosen]), share=share)


def of_pack(pack: Pack) -> Reference:
    """The reference that a pack brings with it, of its judge's features.

    Raises:
        InvalidPack: it has none.
    """
    path = pack.component("judge") / "reference.safetensors"
    if not path.is_file():
        raise InvalidPack(f"'{pack.name}' brings no real pictures to compare with: give --data or --reference")
    content = load_file(path)
    if "features" in content:
        return of_features(content["features"].double(), share=float(content["recognised"]))
    (mean, other_mean), (covariance, other) = content["mean"], content["covariance"]
    return Reference(
        mean=mean,
        covariance=covariance,
        features=None,
        recognised=float(content["recognised"]),
        halves=(mean, covariance, other_mean, other),
    )


def of_npz(path: Path, features: Features, *, is_inception: bool) -> Reference:
    """ADM's reference file: samples in `arr_0`, `uint8` (N,H,W,C), and Inception's `mu` and `sigma`.

    Raises:
        InvalidPack: it is not such a file, or has statistics only, which are Inception's.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in ("arr_0", "mu", "sigma") if name in file}
    except (OSError, ValueError) as error:
        raise InvalidPack(f"{path} is not a reference of guided-diffusion's evaluator: {error}") from error
    if "arr_0" in content:
        samples = torch.from_numpy(content["arr_0"]).permute(0, 3, 1, 2)
        measured = features(samples[:MOST])
        if not (is_inception and "mu" in content):
            return of_features(measured)
        return Reference(
            mean=torch.from_numpy(content["mu"]).double(),
            covariance=torch.from_numpy(content["sigma"]).double(),
            features=measured,
        )
    if "mu" in content and "sigma" in content and is_inception:
        mean, covariance = (torch.from_numpy(content[name]).double() for name in ("mu", "sigma"))
        return Reference(mean=mean, covariance=covariance, features=None)
    raise InvalidPack(f"{path} has no arr_0; its statistics are of Inception: give --features inception=FILE")


def judge_of(pack: Pack, folder: Path | None, pictures: Pictures | None, labels: Tensor | None) -> Judge | None:
    """The judge: given as a folder, or the pack's, or one trained on the pictures and kept in the user's cache.

    Raises:
        InvalidPack: the folder holds no judge.
    """
    if folder is not None:
        return load_network(Judge, folder, torch.device("cpu"), keys=every_key(Judge))
    if (pack.component("judge") / "config.json").is_file():
        return load_judge(pack)
    if pictures is None or labels is None or len(pack.labels) < 2:
        return None
    key = hashlib.sha256(f"{pictures.digest} {pack.labels}".encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cynosure" / "judges" / key
    torch.manual_seed(0)
    channels, size = pictures.images.shape[1:3]
    task = JudgeTask(
        network=Judge(num_classes=len(pack.labels), in_channels=channels, channels=judge_channels(size)), wears=True
    )
    config = run_of(steps=JUDGE_STEPS, batch=128, rate=1.5e-3, ema=0.99, seed=2, weight_decay=0.05)
    rows, _ = pictures.split_rows()
    train(task, LabelledImages(pictures.images[rows], labels[rows]), config, cache, name="judge")
    return load_network(Judge, cache / "judge", torch.device("cpu"), keys=every_key(Judge))
