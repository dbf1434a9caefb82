"""What of a prompt is lost before a text encoder reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from models.spec import SampleSpec

_MAX_WORDS_NAMED = 5
_MAX_QUOTED = 100
_WORDS = re.compile(r"[^\W\d_]+|[^\w\s]")  # runs of letters, and every sign by itself
_SENTENCEPIECE_SPACE = "▁"
_FEW_LETTERS = 3
_PIECES_PER_LETTER = 0.75
"""A word of more pieces is spelt and not read: English words have one piece for about four letters."""


def quoted(text: str) -> str:
    """The text in quotation marks, shortened."""
    return f"'{text[:_MAX_QUOTED]}…'" if len(text) > _MAX_QUOTED else f"'{text}'"


def lost(tokenizer: Any, prompt: str, max_length: int) -> Iterator[str]:
    """Sentences, without their subject, about what `tokenizer` cuts off or does not know.

    Args:
        tokenizer: a tokenizer of transformers.
        prompt: the text.
        max_length: number of tokens that the encoder reads, those that begin and end a text included.
    """
    unknown = [word for word in dict.fromkeys(_WORDS.findall(prompt)) if not _is_known(tokenizer, word)]
    if unknown:
        more = f" and {len(unknown) - _MAX_WORDS_NAMED} more" if len(unknown) > _MAX_WORDS_NAMED else ""
        named = ", ".join(map(quoted, unknown[:_MAX_WORDS_NAMED]))
        yield f"has words that the model's text encoder doesn't know: {named}{more}"
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    read = max_length - tokenizer.num_special_tokens_to_add()
    if len(ids) > read:
        rest = tokenizer.decode(ids[read:]).strip()
        yield f"is too long: the model's text encoder reads {read} of its {len(ids)} tokens, and not {quoted(rest)}"


def remarks_on(spec: SampleSpec, encoders: Iterable[Callable[[str], Iterable[str]]]) -> tuple[str, ...]:
    """What `encoders`, which give sentences as `lost` does, say of a spec's prompts; each once."""
    prompts = {"prompt": spec.prompt, "negative_prompt": spec.negative_prompt}
    read = {field: text for field, text in prompts.items() if text and text.strip()}
    said = [f"{field} {rest}." for field, text in read.items() for encoder in encoders for rest in encoder(text)]
    return tuple(dict.fromkeys(said))


def _is_known(tokenizer: Any, word: str) -> bool:
    """Whether a word has tokens of its own, and is neither skipped nor spelt letter by letter, or byte by byte."""
    pieces = [piece for piece in tokenizer.tokenize(word) if piece != _SENTENCEPIECE_SPACE]
    if tokenizer.unk_token in pieces:
        return False
    is_short = len(word) < _FEW_LETTERS
    return not word.isalpha() or len(pieces) <= (len(word) if is_short else _PIECES_PER_LETTER * len(word))
