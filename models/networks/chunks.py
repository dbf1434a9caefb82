"""Prompts as chunks of tokens, each as long as a CLIP text encoder reads at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.networks.tokens import ids_of
from models.networks.weights import Part


@dataclass(frozen=True)
class Chunk:
    """One text for the encoder.

    Attributes:
        ids: its tokens: the one that begins a text, the prompt's, the one that ends it, and padding.
        weights: of each token; 1 for those that are not the prompt's.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def is_weighted(self) -> bool:
        return any(weight != 1.0 for weight in self.weights)


def chunks_of(tokenizer: Any, parts: Sequence[Part], max_length: int) -> list[Chunk]:
    """Split a prompt into chunks of `max_length` tokens, at least one; the last is padded.

    This is A1111's way without its backtracking to commas (`comma_padding_backtrack`): chunks are full, wherever words
    end, and each weighted part is tokenized by itself. A plain prompt that fits into one chunk has the tokens that the
    tokenizer gives it.

    Args:
        tokenizer: CLIP's, of transformers.
        parts: the prompt.
        max_length: number of tokens of a chunk, with the two that begin and end it.
    """
    begin, end = tokenizer("").input_ids
    read = max_length - 2
    tokens = [(number, weight) for text, weight in parts for number in ids_of(tokenizer, text)]
    chunks = []
    for start in range(0, max(1, len(tokens)), read):
        own = tokens[start : start + read]
        ids = [begin, *(number for number, _ in own), end]
        weights = [1.0, *(weight for _, weight in own), 1.0]
        padding = max_length - len(ids)
        chunks.append(Chunk((*ids, *[tokenizer.pad_token_id] * padding), (*weights, *[1.0] * padding)))
    return chunks
