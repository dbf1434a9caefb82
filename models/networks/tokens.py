"""How text encoders read a prompt: its tokens, and what of it is lost."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.networks.weights import Part, weighted_parts
from models.spec import InvalidPrompt, LongPrompt, SampleSpec

_MAX_WORDS_NAMED = 5
_MAX_QUOTED = 100
_WORDS = re.compile(r"[^\W\d_]+|[^\w\s]")  # runs of letters, and every sign by itself
_SENTENCEPIECE_SPACE = "▁"
_FEW_LETTERS = 3
_PIECES_PER_LETTER = 0.75
"""A word of more pieces is spelt and not read: English words have one piece for about four letters."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How one text encoder reads a prompt.

    Attributes:
        encoder: its component in the pack.
        tokens: number of the prompt's tokens, without those that begin and end a text.
        limit: number of tokens that it reads at once.
        chunks: number of times that it reads, at most `limit` tokens each time.
        cut: the end of the prompt that it does not read.
        remarks: sentences, without their subject, about what it does not read or know.
    """

    encoder: str
    tokens: int
    limit: int
    chunks: int = 1
    cut: str = ""
    remarks: tuple[str, ...] = ()


Readings = Mapping[str, tuple[Reading, ...]]
"""A spec's prompts by field, as each encoder reads them; only those that aren't blank."""


def quoted(text: str) -> str:
    """The text in quotation marks, shortened."""
    return f"'{text[:_MAX_QUOTED]}…'" if len(text) > _MAX_QUOTED else f"'{text}'"


def parts_of(spec: SampleSpec, field: str) -> tuple[Part, ...]:
    """The texts of a spec's prompt with their weights; a plain prompt is one text of weight 1.

    Raises:
        InvalidPrompt: as for `weighted_parts`.
    """
    prompt = getattr(spec, field) or ""
    return weighted_parts(prompt, field) if spec.weighted else ((prompt, 1.0),)


def reading_of(
    tokenizer: Any, texts: Sequence[str], max_length: int, *, encoder: str = "text_encoder", chunked: bool = False
) -> Reading:
    """How an encoder reads the texts of one prompt, one after another.

    Args:
        tokenizer: a tokenizer of transformers.
        texts: tokenized one by one.
        max_length: number of tokens that the encoder reads at once, those that begin and end a text included.
        encoder: its name.
        chunked: whether what is too long is read in chunks, and not cut off.
    """
    ids = [number for text in texts for number in ids_of(tokenizer, text)]
    limit = max_length - tokenizer.num_special_tokens_to_add()
    cut = "" if chunked else tokenizer.decode(ids[limit:]).strip()
    chunks = max(1, math.ceil(len(ids) / limit)) if chunked else 1
    remarks = []
    unknown = [word for word in dict.fromkeys(_WORDS.findall("".join(texts))) if not _is_known(tokenizer, word)]
    if unknown:
        more = f" and {len(unknown) - _MAX_WORDS_NAMED} more" if len(unknown) > _MAX_WORDS_NAMED else ""
        named = ", ".join(map(quoted, unknown[:_MAX_WORDS_NAMED]))
        remarks.append(f"has words that the model's text encoder doesn't know: {named}{more}")
    if len(ids) > limit * chunks:
        remarks.append(
            f"is too long: the model's text encoder reads {limit} of its {len(ids)} tokens, and not {quoted(cut)}"
        )
    return Reading(encoder=encoder, tokens=len(ids), limit=limit, chunks=chunks, cut=cut, remarks=tuple(remarks))


def readings_on(spec: SampleSpec, encoders: Iterable[Callable[[tuple[str, ...]], Reading]]) -> Readings:
    """How `encoders`, which take the texts of a prompt, read a spec's prompts.

    Raises:
        InvalidPrompt: one is too long, and the spec says to refuse it; or as for `parts_of`.
    """
    readings: dict[str, tuple[Reading, ...]] = {}
    for field in ("prompt", "negative_prompt"):
        texts = tuple(text for text, _ in parts_of(spec, field))
        if not "".join(texts).strip():
            continue
        readings[field] = tuple(encoder(texts) for encoder in encoders)
        too_long = [one for one in readings[field] if one.tokens > one.limit]
        if spec.long_prompt is LongPrompt.REFUSE and too_long:
            raise InvalidPrompt(
                field,
                f"has {too_long[0].tokens} tokens, and the model's text encoder reads {too_long[0].limit}: shorten it, "
                "or set long_prompt to another value",
            )
    return readings


def remarks_on(readings: Readings) -> tuple[str, ...]:
    """What is to be said of a spec's prompts, in sentences; each once."""
    said = [f"{field} {rest}." for field, read in readings.items() for reading in read for rest in reading.remarks]
    return tuple(dict.fromkeys(said))


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, without those that begin and end it."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def _is_known(tokenizer: Any, word: str) -> bool:
    """Whether a word has tokens of its own, and is neither skipped nor spelt letter by letter, or byte by byte."""
    pieces = [piece for piece in tokenizer.tokenize(word) if piece != _SENTENCEPIECE_SPACE]
    if tokenizer.unk_token in pieces:
        return False
    is_short = len(word) < _FEW_LETTERS
    return not word.isalpha() or len(pieces) <= (len(word) if is_short else _PIECES_PER_LETTER * len(word))
