"""A pack of prompts and styles: which known thing a picture is nearest to, and which style a judge sees in it."""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from models.classifiers import load_judge
from models.engine import Engine
from models.evaluation.measures import recognised
from models.pack import Pack
from models.spec import Guidance, SampleSpec, Term

FREE_SCALES = (1.0, 1.5, 2.5, 4.0)
CLASSIFIER_SCALES = (10.0, 30.0, 100.0)
_PER_SHEET, _COLUMNS, _SIDE, _CAPTION = 40, 8, 96, 30


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Every real picture of the pack's things; training had all but the held-out pairs of thing and style.

    Attributes:
        pictures: `uint8` (things, styles, 3, H, W).
        names: of the things.
        held_out: (thing, style) of the pictures that training lacked.
        other_words: prompts that training lacked, with the names of the things that would be right.
        style_recognised: share of the pictures whose style the judge, which never saw them, names.
    """

    pictures: Tensor
    names: tuple[str, ...]
    held_out: tuple[tuple[int, int], ...]
    other_words: Mapping[str, tuple[str, ...]]
    style_recognised: float

    @classmethod
    def of(cls, pack: Pack) -> Reference:
        with safe_open(pack.component("judge") / "reference.safetensors", "pt") as kept:
            about = kept.metadata()
            return cls(
                pictures=kept.get_tensor("pictures"),
                names=tuple(json.loads(about["names"])),
                held_out=tuple((thing, style) for thing, style in kept.get_tensor("held_out").tolist()),
                other_words={prompt: tuple(names) for prompt, names in json.loads(about["other_words"]).items()},
                style_recognised=float(kept.get_tensor("recognised")),
            )

    @property
    def num_styles(self) -> int:
        return self.pictures.shape[1]

    def nearest(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The real pictures nearest to `uint8` ones (N,3,H,W): rows (N,) of all of them, and distances (N,)."""
        distances, rows = _distances(pictures, self.pictures.flatten(0, 1)).min(1)
        return rows, distances

    def across_styles(self) -> float:
        """Share of the real pictures whose nearest one of another style shows the same thing."""
        every = self.pictures.flatten(0, 1)
        row = torch.arange(len(every))
        thing, style = row // self.num_styles, row % self.num_styles
        distances = _distances(every, every).masked_fill(style[:, None] == style, torch.inf)
        return float((thing[distances.argmin(1)] == thing).float().mean())

    def apart(self) -> Tensor:
        """Distance (things·styles,) of every real picture to the nearest other one."""
        every = self.pictures.flatten(0, 1)
        return _distances(every, every).fill_diagonal_(torch.inf).amin(1)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, the style that is asked for, and the names of the things that would be right."""

    prompt: str
    style: int
    right: tuple[str, ...]


def questions(reference: Reference, *, count: int) -> dict[str, list[Question]]:
    """`count` names in styles that training had, all words that it lacked, and all pairs that it lacked."""
    names, styles = reference.names, range(reference.num_styles)
    trained = [
        (thing, style) for thing in range(len(names)) for style in styles if (thing, style) not in reference.held_out
    ]
    few = trained[:: max(1, len(trained) // count)][:count]
    return {
        "names": [Question(prompt=names[thing], style=style, right=(names[thing],)) for thing, style in few],
        "other words": [
            Question(prompt=prompt, style=number % len(styles), right=right)
            for number, (prompt, right) in enumerate(reference.other_words.items())
        ],
        "unseen pairs": [
            Question(prompt=names[thing], style=style, right=(names[thing],)) for thing, style in reference.held_out
        ],
    }


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How questions are asked.

    Attributes:
        guidance: where it has a classifier's scale, the classifier is asked for the style.
        told: whether the denoiser is told the style.
    """

    guidance: Guidance
    told: bool = True


def specs_of(pack: Pack, asked: Sequence[Question], setting: Setting) -> list[SampleSpec]:
    """A picture for each question, by the pack's default sampler and steps, all of seed 0."""
    return [
        SampleSpec(
            pack=pack.name,
            prompt=question.prompt,
            label=question.style if setting.told else None,
            guidance=replace(setting.guidance, terms=(Term(1.0, (question.style,)),)),
            sampler=pack.defaults["sampler"],
            steps=pack.defaults["steps"],
            seed=0,
            image_index=number,
        )
        for number, question in enumerate(asked)
    ]


def draw(engine: Engine, pack: Pack, asked: Sequence[Question], setting: Setting) -> Tensor:
    """`uint8` pictures (N,3,H,W) of `specs_of`."""
    pictures = engine.generate(specs_of(pack, asked, setting))
    return torch.stack([torch.from_numpy(picture) for picture in pictures]).permute(0, 3, 1, 2)


def found(reference: Reference, pictures: Tensor, asked: Sequence[Question]) -> float:
    """Share of the pictures (N,3,H,W) whose nearest real one shows what its question asked for."""
    rows, _ = reference.nearest(pictures)
    shown = [reference.names[row // reference.num_styles] for row in rows.tolist()]
    return sum(name in question.right for name, question in zip(shown, asked, strict=True)) / len(asked)


def measured(pack: Pack, *, count: int, only: str) -> Iterator[str]:
    """The lines of a table with a row for each setting whose name contains `only`, then how near real pictures are."""
    judge, reference = load_judge(pack), Reference.of(pack)
    asked = questions(reference, count=count)
    every = [question for part in asked.values() for question in part]
    styles = torch.tensor([question.style for question in every])
    yield f"{'setting':<36} " + " ".join(f"{part:>12}" for part in (*asked, "style"))
    yield f"{'real pictures':<36} {reference.across_styles():>12.1%} {reference.style_recognised:>38.1%}"
    sizes = [len(part) for part in asked.values()]
    usual = Setting(guidance=Guidance(free_scale=pack.defaults["guidance_scale"]))
    with Engine([str(pack.folder)]) as engine:
        as_usual = draw(engine, pack, every, usual)
        for name, setting in _settings(pack).items():
            if only not in name:
                continue
            pictures = as_usual if setting == usual else draw(engine, pack, every, setting)
            shares = [found(reference, *pair) for pair in zip(pictures.split(sizes), asked.values(), strict=True)]
            shares.append(recognised(judge, pictures, styles))
            yield f"{name:<36} " + " ".join(f"{share:>12.1%}" for share in shares)
    yield f"\n{'distance to the nearest real picture':<36} {'median':>12} {'90 % under':>12}"
    yield _of_distances("real pictures, another one", reference.apart())
    for part, pictures in zip(asked, as_usual.split(sizes), strict=True):
        yield _of_distances(part, reference.nearest(pictures)[1])


def save_sheets(pack: Pack, folder: Path) -> None:
    """Draw 40 prompts, the first half evenly out of the known names, the second out of the words that training lacked.

    `NAME.png` has them, and `NAME-nearest.png` each beside the real picture that is nearest to it.
    """
    reference = Reference.of(pack)
    half = _PER_SHEET // 2
    asked = questions(reference, count=half)
    some = asked["other words"][:: len(asked["other words"]) // half][:half]
    other = [replace(question, style=number % reference.num_styles) for number, question in enumerate(some)]
    usual = Setting(guidance=Guidance(free_scale=pack.defaults["guidance_scale"]))
    folder.mkdir(parents=True, exist_ok=True)
    with Engine([str(pack.folder)]) as engine:
        pictures = draw(engine, pack, [*asked["names"], *other], usual)
    captions = [f"{question.prompt} ({pack.labels[question.style]})" for question in [*asked["names"], *other]]
    _sheet(pictures, captions).save(folder / f"{pack.name}.png")
    rows, distances = reference.nearest(pictures)
    every = reference.pictures.flatten(0, 1)
    beside = torch.stack([pictures, every[rows]], 1).flatten(0, 1)
    nearest = [f"nearest: {distance:.0f}" for distance in distances.tolist()]
    captions = list(itertools.chain.from_iterable(zip(captions, nearest, strict=True)))
    _sheet(beside, captions).save(folder / f"{pack.name}-nearest.png")


def _settings(pack: Pack) -> Mapping[str, Setting]:
    told = {f"prompt and style, w={scale:g}": Setting(guidance=Guidance(free_scale=scale)) for scale in FREE_SCALES}
    if not pack.has_classifier:
        return told
    usual = Guidance(free_scale=pack.defaults["guidance_scale"])
    alone = {"prompt alone": Setting(guidance=usual, told=False)}
    guidances = {scale: replace(usual, classifier_scale=scale) for scale in CLASSIFIER_SCALES}
    steered = {
        f"prompt, style by classifier s={scale:g}": Setting(guidance=guidance, told=False)
        for scale, guidance in guidances.items()
    }
    both = {
        f"prompt, style both ways, s={scale:g}": Setting(guidance=guidance) for scale, guidance in guidances.items()
    }
    return told | alone | steered | both


def _distances(pictures: Tensor, others: Tensor) -> Tensor:
    """Root mean square difference (N,M) in grey levels, of averages over 2×2 pixels: a shift is not all there is."""
    left, right = (functional.avg_pool2d(some.float(), 2).flatten(1) for some in (pictures, others))
    return torch.cdist(left, right) / left.shape[1] ** 0.5


def _of_distances(name: str, distances: Tensor) -> str:
    return f"{name:<36} {float(distances.median()):>12.1f} {float(distances.quantile(0.9)):>12.1f}"


def _sheet(pictures: Tensor, captions: Sequence[str]) -> Image.Image:
    """`uint8` pictures (N,3,H,W), enlarged without smoothing, each over its caption."""
    lines = -(-len(pictures) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * (_SIDE + 8), lines * (_SIDE + _CAPTION)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        line, column = divmod(number, _COLUMNS)
        left, top = column * (_SIDE + 8), line * (_SIDE + _CAPTION)
        enlarged = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (left + 4, top))
        pen.multiline_text((left + 4, top + _SIDE), "\n".join(textwrap.wrap(caption, 17)), fill="black", spacing=1)
    return sheet
