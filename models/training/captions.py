"""Captions that the emoji pack is trained with, and the prompts and pictures held out from training."""

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
"""Caption rows per concept; a caption's weight is the number of its rows."""
_HELD_OUT = Path(__file__).with_name("emoji_held_out.txt")
_PAIR_STRIDE = 12  # one concept in twelve lacks one style


def held_out_prompts() -> dict[str, tuple[str, ...]]:
    """Prompts that no training caption contains, with the names of the emoji that match them."""
    prompts = {}
    for line in _HELD_OUT.read_text().splitlines():
        if not line.startswith("#"):
            prompt, _, names = line.partition(":")
            prompts[prompt.strip()] = tuple(name.strip() for name in names.split(","))
    return prompts


def held_out_pairs(count: int) -> list[tuple[int, int]]:
    """(concept, style) pairs whose picture is never trained on, though the concept's other two styles are."""
    return [(concept, number % len(STYLES)) for number, concept in enumerate(range(5, count, _PAIR_STRIDE))]


def trained_pairs(count: int) -> list[tuple[int, int]]:
    """All (concept, style) pairs except the held-out ones."""
    held_out = set(held_out_pairs(count))
    return [pair for pair in itertools.product(range(count), range(len(STYLES))) if pair not in held_out]


def captions_of(concept: Concept, common: Counter[str]) -> list[str]:
    """The concept's captions without style, most reliable first: name, our words, keywords that few concepts share.

    `common` counts the concepts in which a keyword occurs. Captions that contain a held-out prompt are left out.
    """
    held_out = {_folded(prompt) for prompt in held_out_prompts()}
    reliable = [concept.name, *concept.words]
    rare = [word for word in concept.keywords if common[word] <= 2 and word.isascii() and len(word) > 2]
    captions = dict.fromkeys(_folded(text) for text in (*reliable, *rare))
    return [text for text in captions if not any(f" {prompt} " in f" {text} " for prompt in held_out)]


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Every caption as a vector, and the captions of each concept and style.

    Attributes:
        vectors: float32 (T, size), unit length.
        plain: `int64` (concepts, CHOICES), rows of `vectors`.
        styled: `int64` (concepts, styles, CHOICES), captions that name the style.
    """

    vectors: Tensor
    plain: Tensor
    styled: Tensor

    def to(self, device: torch.device) -> Captions:
        if self.vectors.device == device:
            return self
        return Captions(vectors=self.vectors.to(device), plain=self.plain.to(device), styled=self.styled.to(device))

    def learnt(self) -> Tensor:
        """(N, size): the distinct vectors of all captions that name no style."""
        return self.vectors[self.plain.unique()]


def encode_captions(concepts: Sequence[Concept], encoder: SentenceEncoder, folder: Path) -> Captions:
    """Encode every caption, cached in `folder`."""
    common = Counter(word for concept in concepts for word in set(concept.keywords))
    plain = [list(_weighted(captions_of(concept, common))) for concept in concepts]
    styled = [
        [[_in_style(text, style, number) for number, text in enumerate(texts)] for style in STYLES] for texts in plain
    ]
    rows: dict[str, int] = {}
    for text in _flat((plain, styled)):
        rows.setdefault(text, len(rows))
    digest = hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()[:16]
    cached = folder / f"captions-{digest}.safetensors"
    if not cached.exists():
        texts = list(rows)
        vectors = torch.cat([encoder.batch(texts[start : start + 256]) for start in range(0, len(texts), 256)])
        save_whole({"vectors": vectors}, cached)
    return Captions(
        vectors=load_file(cached)["vectors"],
        plain=torch.tensor([[rows[text] for text in texts] for texts in plain]),
        styled=torch.tensor([[[rows[text] for text in texts] for texts in by_style] for by_style in styled]),
    )


def _folded(text: str) -> str:
    return text.replace("’", "'").casefold().strip()


def _weighted(texts: Sequence[str]) -> Iterator[str]:
    """CHOICES captions, two thirds of them from the first two texts; one in four is "a …", one in four "… emoji"."""
    first, rest = texts[:2], texts[2:] or texts[:2]
    for number in range(CHOICES):
        pool = rest if number % 3 == 2 else first
        text = pool[(number // 3) % len(pool)]
        yield (text, f"a {text}", text, f"{text} emoji")[number % 4]


def _in_style(text: str, style: str, number: int) -> str:
    return f"{text} in {style} style" if number % 2 else f"{style} {text}"


def _flat(texts: Iterable[object]) -> Iterator[str]:
    for item in texts:
        if isinstance(item, str):
            yield item
        elif isinstance(item, Iterable):
            yield from _flat(item)
