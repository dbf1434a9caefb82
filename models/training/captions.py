"""What the emoji pack's pictures are called while it learns, and what is kept from it to be asked later."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.networks.sentences import SentenceEncoder
from models.training.data import save_whole
from models.training.emoji import STYLES, Concept

CHOICES = 32
"""Rows of the caption table that a concept draws from: how often one occurs there is its weight."""
_HELD_OUT = Path(__file__).with_name("emoji_held_out.txt")
_PAIR_STRIDE = 12  # one concept in twelve lacks one style


def held_out_prompts() -> dict[str, tuple[str, ...]]:
    """Prompts that no training caption contains, with the names of the emoji that answer them."""
    prompts = {}
    for line in _HELD_OUT.read_text().splitlines():
        if not line.startswith("#"):
            prompt, _, names = line.partition(":")
            prompts[prompt.strip()] = tuple(name.strip() for name in names.split(","))
    return prompts


def held_out_pairs(count: int) -> list[tuple[int, int]]:
    """(concept, style) pairs whose picture is never trained on: the other two styles of that concept are."""
    return [(concept, number % len(STYLES)) for number, concept in enumerate(range(5, count, _PAIR_STRIDE))]


def trained_pairs(count: int) -> list[tuple[int, int]]:
    """Every (concept, style) pair but the held-out ones."""
    held_out = set(held_out_pairs(count))
    return [pair for pair in itertools.product(range(count), range(len(STYLES))) if pair not in held_out]


def captions_of(concept: Concept, common: Counter[str]) -> list[str]:
    """The concept's plain captions, the first ones the surest: name, our words, then keywords that few concepts share.

    `common` counts in how many concepts a keyword occurs. What `held_out_prompts` asks later is left out.
    """
    held_out = {_folded(prompt) for prompt in held_out_prompts()}
    sure = [concept.name, *concept.words]
    more = [word for word in concept.keywords if common[word] <= 2 and word.isascii() and len(word) > 2]
    captions = dict.fromkeys(_folded(text) for text in (*sure, *more))
    return [text for text in captions if not any(f" {prompt} " in f" {text} " for prompt in held_out)]


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Every caption as a vector, and which of them belong to what.

    Attributes:
        vectors: float32 (T, size), unit length.
        plain: `int64` (concepts, CHOICES), rows of `vectors`.
        styled: `int64` (concepts, styles, CHOICES), captions that name the style.
    """

    vectors: Tensor
    plain: Tensor
    styled: Tensor

    def learnt(self) -> Tensor:
        """(N, size): each vector once that a picture may be told by, but for those that name a style."""
        return self.vectors[self.plain.unique()]


def encode_captions(concepts: Sequence[Concept], encoder: SentenceEncoder, folder: Path) -> Captions:
    """Every caption through the text encoder; kept in `folder`, for texts and encoder don't change while training."""
    common = Counter(word for concept in concepts for word in set(concept.keywords))
    plain = [list(_weighted(captions_of(concept, common))) for concept in concepts]
    styled = [
        [[_in_style(text, style, number) for number, text in enumerate(texts)] for style in STYLES] for texts in plain
    ]
    rows: dict[str, int] = {}
    for text in _flat((plain, styled)):
        rows.setdefault(text, len(rows))
    digest = hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()[:16]
    kept = folder / f"captions-{digest}.safetensors"
    if not kept.exists():
        texts = list(rows)
        vectors = torch.cat([encoder.batch(texts[start : start + 256]) for start in range(0, len(texts), 256)])
        save_whole({"vectors": vectors}, kept)
    return Captions(
        vectors=load_file(kept)["vectors"],
        plain=torch.tensor([[rows[text] for text in texts] for texts in plain]),
        styled=torch.tensor([[[rows[text] for text in texts] for texts in one] for one in styled]),
    )


def _folded(text: str) -> str:
    return text.replace("’", "'").casefold().strip()


def _weighted(texts: Sequence[str]) -> Iterator[str]:
    """CHOICES captions: the first two texts have two thirds of them; one in four is "a …", one in four "… emoji"."""
    sure, more = texts[:2], texts[2:] or texts[:2]
    for number in range(CHOICES):
        pool = more if number % 3 == 2 else sure
        text = pool[(number // 3) % len(pool)]
        yield (text, f"a {text}", text, f"{text} emoji")[number % 4]


def _in_style(text: str, style: str, number: int) -> str:
    return f"{text} in {style} style" if number % 2 else f"{style} {text}"


def _flat(texts: Iterable[object]) -> Iterator[str]:
    for one in texts:
        if isinstance(one, str):
            yield one
        elif isinstance(one, Iterable):
            yield from _flat(one)
