r"""Prompts whose words have weights, in the syntax of A1111's web UI.

| written | read |
|---|---|
| `(word)` | weight 1.1 |
| `(word:1.3)` | weight 1.3 |
| `[word]` | weight 1/1.1 |
| `\(` `\)` `\[` `\]` `\\` | the sign itself |

Weights of brackets inside each other are multiplied. A bracket that is never closed ends with the prompt, and one that
was never opened is text. A single backslash is dropped. Neighbours of equal weight are read as one text.

What A1111 does beyond weights is refused by name: adapters, schedules, alternation, BREAK and AND.
"""

from __future__ import annotations

import re
from itertools import groupby
from operator import itemgetter

from models.spec import InvalidPrompt

Part = tuple[str, float]
"""A text and its weight."""

BRACKET = 1.1  # weight of a pair of brackets without a number
MOST_WEIGHT = 100.0
_FACTOR = {"(": BRACKET, "[": 1 / BRACKET}
_OPENING = {")": "(", "]": "["}
_MARK = re.compile(r"\\(?P<literal>[()\[\]\\]?)|(?P<sign>[()\[\]])|:\s*(?P<weight>[+-]?[.\d]+)\s*\)")
_NOT_SERVED = (
    (
        re.compile(r"<\w+:[^<>]*>"),
        "LoRAs are named in loras, or in prompt by <lora:NAME:SCALE>; other adapters are not served",
    ),
    (re.compile(r"(?<!\\)\[[^\[\]]*:\s*[\d.]+\s*\]"), "words that change during the steps are not served"),
    (re.compile(r"(?<!\\)\[[^\[\]]*\|[^\[\]]*\]"), "words that alternate are not served"),
    (re.compile(r"\b(?:BREAK|AND)\b"), "it is a command of A1111's and not served; in small letters it is a word"),
)


def weighted_parts(prompt: str, field: str) -> tuple[Part, ...]:
    """Read a prompt; at least one part, none empty unless the prompt is.

    Raises:
        InvalidPrompt: it holds what is not served, or a weight that is no number within ±100.
    """
    for pattern, reason in _NOT_SERVED:
        if found := pattern.search(prompt):
            raise InvalidPrompt(field, f"holds '{found[0][:100]}': {reason}")
    texts: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def scale(start: int, factor: float) -> None:
        weights[start:] = [weight * factor for weight in weights[start:]]

    def add(text: str) -> None:
        texts.append(text)
        weights.append(1.0)

    end = 0
    for mark in _MARK.finditer(prompt):
        add(prompt[end : mark.start()])
        end = mark.end()
        literal, sign, number = mark["literal"], mark["sign"], mark["weight"]
        if literal is not None:
            add(literal)
        elif sign in opened:
            opened[sign].append(len(texts))
        elif number is not None and opened["("]:
            scale(opened["("].pop(), _number(number, field))
        elif sign is not None and opened[_OPENING[sign]]:
            scale(opened[_OPENING[sign]].pop(), _FACTOR[_OPENING[sign]])
        else:
            add(mark[0])
    add(prompt[end:])
    for sign, starts in opened.items():
        for start in starts:
            scale(start, _FACTOR[sign])
    if max(map(abs, weights)) > MOST_WEIGHT:
        raise InvalidPrompt(field, f"has a weight beyond ±{MOST_WEIGHT:g}")
    parts = [(text, weight) for text, weight in zip(texts, weights, strict=True) if text]
    joined = (("".join(text for text, _ in run), weight) for weight, run in groupby(parts, key=itemgetter(1)))
    return tuple(joined) or (("", 1.0),)


def _number(text: str, field: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidPrompt(field, f"has the weight '{text[:100]}', which is not a number") from None
