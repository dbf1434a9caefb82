"""Prompts with weights: the examples that A1111 publishes, and what is refused."""

from __future__ import annotations

import pytest

from models.networks.weights import weighted_parts
from models.spec import InvalidPrompt

PUBLISHED: dict[str, list[tuple[str, float]]] = {
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    r"\(literal\]": [("(literal]", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0),
        ("house", 1.573),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641),
        (".", 1.1),
    ],
}
"""The web UI's own examples of what its prompts mean (`parse_prompt_attention`)."""
OURS: dict[str, list[tuple[str, float]]] = {
    "": [("", 1.0)],
    "()": [("", 1.0)],
    "a) b] c:1.3)": [("a) b] c:1.3)", 1.0)],
    "(time: noon)": [("time: noon", 1.1)],
    "(a : -0.5 )": [("a ", -0.5)],
    r"a\\b \c": [(r"a\b c", 1.0)],
    "[a (b] c)": [("a ", 1 / 1.1), ("b", 1.0), (" c", 1.1)],
}


@pytest.mark.parametrize(("prompt", "parts"), [*PUBLISHED.items(), *OURS.items()])
def test_weights_are_read_as_a1111_reads_them(prompt: str, parts: list[tuple[str, float]]) -> None:
    read = weighted_parts(prompt, "prompt")
    assert [text for text, _ in read] == [text for text, _ in parts]
    assert [weight for _, weight in read] == pytest.approx([weight for _, weight in parts])


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a <lora:style:0.8> cat", "'<lora:style:0.8>': LoRAs are named in loras"),
        ("[a cat:a dog:0.5]", "'[a cat:a dog:0.5]': words that change during the steps"),
        ("a [cat|dog]", "'[cat|dog]': words that alternate"),
        ("a cat BREAK a dog", "'BREAK': it is a command"),
        ("(cat:1.2.3)", "the weight '1.2.3', which is not a number"),
        ("((cat:20):20)", "a weight beyond ±100"),
    ],
)
def test_what_is_not_served_is_refused_by_name(prompt: str, said: str) -> None:
    with pytest.raises(InvalidPrompt) as refused:
        weighted_parts(prompt, "negative_prompt")
    assert refused.value.field == "negative_prompt"
    assert said in str(refused.value)
