"""Evaluates a prompted pack: the known thing that a picture is nearest to, and the style that the judge sees in it."""

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
from models.spec import Guidance, SampleSpec, StepCache, Term

FREE_SCALES = (1.0, 1.5, 2.5, 4.0)
CLASSIFIER_SCALES = (10.0, 30.0, 100.0)
_PER_SHEET, _COLUMNS, _SIDE, _CAPTION = 40, 8, 96, 30


@dataclass(frozen=True, kw_only=True)
class Reference:
    """All real pictures of the pack's things; training used all but the held-out (thing, style) pairs.

    Attributes:
        pictures: `uint8` (things, styles, 3, H, W).
        names: of the things.
        held_out: (thing, style) of the pictures that training lacked.
        other_words: prompts that training lacked, with the names of the things that match them.
        style_recognised: share of the pictures whose style the judge, which was not trained on them, recognises.
    """

    pictures: Tensor
    names: tuple[str, ...]
    held_out: tuple[tuple[int, int], ...]
    other_words: Mapping[str, tuple[str, ...]]
    style_recognised: float

    @classmethod
    def of(cls, pack: Pack) -> Reference:
        with safe_open(pack.component("judge") / "reference.safetensors", "pt") as file:
            metadata = file.metadata()
            return cls(
                pictures=file.get_tensor("pictures"),
                names=tuple(json.loads(metadata["names"])),
                held_out=tuple((thing, style) for thing, style in file.get_tensor("held_out").tolist()),
                other_words={prompt: tuple(names) for prompt, names in json.loads(metadata["other_words"]).items()},
                style_recognised=float(file.get_tensor("recognised")),
            )

    @property
    def num_styles(self) -> int:
        return self.pictures.shape[1]

    def nearest(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The real picture nearest to each `uint8` picture (N,3,H,W): row numbers (N,), and distances (N,)."""
        distances, rows = _distances(pictures, self.pictures.flatten(0, 1)).min(1)
        return rows, distances

    def across_styles(self) -> float:
        """Share of the real pictures whose nearest real picture in another style shows the same thing."""
        pictures = self.pictures.flatten(0, 1)
        row = torch.arange(len(pictures))
        thing, style = row // self.num_styles, row % self.num_styles
        distances = _distances(pictures, pictures).masked_fill(style[:, None] == style, torch.inf)
        return float((thing[distances.argmin(1)] == thing).float().mean())

    def apart(self) -> Tensor:
        """Distance (things·styles,) of every real picture to the nearest other one."""
        pictures = self.pictures.flatten(0, 1)
        return _distances(pictures, pictures).fill_diagonal_(torch.inf).amin(1)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, the requested style, and the names of the things that match the prompt."""

    prompt: str
    style: int
    right: tuple[str, ...]


def has_reference(pack: Pack) -> bool:
    """Whether the pack brings the things that it draws, to look for the nearest to a picture."""
    path = pack.component("judge") / "reference.safetensors"
    if not path.is_file():
        return False
    with safe_open(path, "pt") as file:
        return "pictures" in file.keys()  # noqa: SIM118  # it is no mapping


def questions(reference: Reference, *, count: int) -> dict[str, list[Question]]:
    """Questions by kind: `count` trained (name, style) pairs, all words training lacked, and all held-out pairs."""
    names, styles = reference.names, range(reference.num_styles)
    trained = [
        (thing, style) for thing in range(len(names)) for style in styles if (thing, style) not in reference.held_out
    ]
    chosen = trained[:: max(1, len(trained) // count)][:count]
    return {
        "names": [Question(prompt=names[thing], style=style, right=(names[thing],)) for thing, style in chosen],
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
    """How questions become requests.

    Attributes:
        guidance: if it has a classifier scale, the classifier steers to the style.
        told: whether the denoiser is conditioned on the style.
        cache: when deep blocks run; `None` is always.
    """

    guidance: Guidance
    told: bool = True
    cache: StepCache | None = None


def specs_of(pack: Pack, asked: Sequence[Question], setting: Setting) -> list[SampleSpec]:
    """A spec for each question, with the pack's default sampler and steps, and seed 0."""
    return [
        SampleSpec(
            pack=pack.name,
            prompt=question.prompt,
            label=question.style if setting.told else None,
            guidance=replace(setting.guidance, terms=(Term(1.0, (question.style,)),)),
            sampler=pack.defaults["sampler"],
            steps=pack.defaults["steps"],
            cache=setting.cache,
            seed=0,
            image_index=number,
        )
        for number, question in enumerate(asked)
    ]


def draw(engine: Engine, pack: Pack, asked: Sequence[Question], setting: Setting) -> Tensor:
    """Draw the pictures of `specs_of`, `uint8` (N,3,H,W)."""
    pictures = engine.generate(specs_of(pack, asked, setting))
    return torch.stack([torch.from_numpy(picture) for picture in pictures]).permute(0, 3, 1, 2)


def found(reference: Reference, pictures: Tensor, asked: Sequence[Question]) -> float:
    """Share of the pictures (N,3,H,W) whose nearest real picture matches the question."""
    rows, _ = reference.nearest(pictures)
    shown = [reference.names[row // reference.num_styles] for row in rows.tolist()]
    return sum(name in question.right for name, question in zip(shown, asked, strict=True)) / len(asked)


def measured(
    pack: Pack, *, count: int, only: str, cache: StepCache | None = None, precision: str = "auto"
) -> Iterator[str]:
    """Yield a table's lines: a row for each setting whose name contains `only`, then distances to real pictures.

    `cache` and `precision`, the number format as for `load_networks`, are those of all settings.
    """
    judge, reference = load_judge(pack), Reference.of(pack)
    by_kind = questions(reference, count=count)
    flat = [question for kind in by_kind.values() for question in kind]
    styles = torch.tensor([question.style for question in flat])
    yield f"{'setting':<36} " + " ".join(f"{kind:>12}" for kind in (*by_kind, "style"))
    yield f"{'real pictures':<36} {reference.across_styles():>12.1%} {reference.style_recognised:>38.1%}"
    sizes = [len(kind) for kind in by_kind.values()]
    default = Setting(guidance=Guidance(free_scale=pack.defaults["guidance_scale"]), cache=cache)
    with Engine([pack], precision=precision) as engine:
        by_default = draw(engine, pack, flat, default)
        for name, each in _settings(pack).items():
            if only not in name:
                continue
            setting = replace(each, cache=cache)
            pictures = by_default if setting == default else draw(engine, pack, flat, setting)
            shares = [found(reference, *pair) for pair in zip(pictures.split(sizes), by_kind.values(), strict=True)]
            shares.append(recognised(judge, pictures, styles))
            yield f"{name:<36} " + " ".join(f"{share:>12.1%}" for share in shares)
    yield f"\n{'distance to the nearest real picture':<36} {'median':>12} {'90 % under':>12}"
    yield _of_distances("real pictures, another one", reference.apart())
    for kind, pictures in zip(by_kind, by_default.split(sizes), strict=True):
        yield _of_distances(kind, reference.nearest(pictures)[1])


def save_sheets(pack: Pack, folder: Path, precision: str = "auto") -> None:
    """Draw 40 prompts: half sampled evenly from the known names, half from the words that training lacked.

    `NAME.png` shows them, and `NAME-nearest.png` shows each next to the nearest real picture.
    """
    reference = Reference.of(pack)
    half = _PER_SHEET // 2
    by_kind = questions(reference, count=half)
    other_words = by_kind["other words"][:: len(by_kind["other words"]) // half][:half]
    other = [replace(question, style=number % reference.num_styles) for number, question in enumerate(other_words)]
    asked = [*by_kind["names"], *other]
    default = Setting(guidance=Guidance(free_scale=pack.defaults["guidance_scale"]))
    folder.mkdir(parents=True, exist_ok=True)
    with Engine([pack], precision=precision) as engine:
        pictures = draw(engine, pack, asked, default)
    captions = [f"{question.prompt} ({pack.labels[question.style]})" for question in asked]
    _sheet(pictures, captions).save(folder / f"{pack.name}.png")
    rows, distances = reference.nearest(pictures)
    real = reference.pictures.flatten(0, 1)
    pairs = torch.stack([pictures, real[rows]], 1).flatten(0, 1)
    nearest = [f"nearest: {distance:.0f}" for distance in distances.tolist()]
    captions = list(itertools.chain.from_iterable(zip(captions, nearest, strict=True)))
    _sheet(pairs, captions).save(folder / f"{pack.name}-nearest.png")


def _settings(pack: Pack) -> Mapping[str, Setting]:
    conditioned = {
        f"prompt and style, w={scale:g}": Setting(guidance=Guidance(free_scale=scale)) for scale in FREE_SCALES
    }
    if not pack.has_classifier:
        return conditioned
    default = Guidance(free_scale=pack.defaults["guidance_scale"])
    alone = {"prompt alone": Setting(guidance=default, told=False)}
    guidances = {scale: replace(default, classifier_scale=scale) for scale in CLASSIFIER_SCALES}
    steered = {
        f"prompt, style by classifier s={scale:g}": Setting(guidance=guidance, told=False)
        for scale, guidance in guidances.items()
    }
    both = {
        f"prompt, style both ways, s={scale:g}": Setting(guidance=guidance) for scale, guidance in guidances.items()
    }
    return conditioned | alone | steered | both


def _distances(pictures: Tensor, others: Tensor) -> Tensor:
    """Root mean square difference (N,M) in grey levels, of averages over 2×2 pixels to tolerate small shifts."""
    left, right = (functional.avg_pool2d(each.float(), 2).flatten(1) for each in (pictures, others))
    return torch.cdist(left, right) / left.shape[1] ** 0.5


def _of_distances(name: str, distances: Tensor) -> str:
    return f"{name:<36} {float(distances.median()):>12.1f} {float(distances.quantile(0.9)):>12.1f}"


def _sheet(pictures: Tensor, captions: Sequence[str]) -> Image.Image:
    """Contact sheet of `uint8` pictures (N,3,H,W), enlarged without smoothing, each above its caption."""
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
