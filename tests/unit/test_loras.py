"""LoRAs in requests: found by name, held by digest, told in pictures and in the key of results."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from app.gateway.a1111.shapes import TextToImage, request_of
from cynosure.cli.shared import loras_of
from cynosure.contract import GenerateRequest, LoraOnCard, ModelCard, PromptSyntax, SweepRequest
from cynosure.errors import InvalidRequest
from cynosure.metadata import again, encoded_picture, parameters_of, png_bytes
from cynosure.resolving import resolve, resolve_sweep, result_key

INK, RED = "a" * 64, "b" * 64


@pytest.fixture
def drawer(emoji: ModelCard) -> ModelCard:
    """A model that takes weighted prompts and LoRAs."""
    fault = "it is for Flux, and the model is Stable Diffusion 1"
    loras = (
        LoraOnCard(name="ink", digest=INK, rank=4),
        LoraOnCard(name="red-ish", digest=RED, rank=8),
        LoraOnCard(name="foreign", digest="c" * 64, fault=fault),
    )
    syntaxes = tuple(PromptSyntax)
    return emoji.model_copy(update={"takes_loras": True, "loras": loras, "prompt_syntaxes": syntaxes})


def test_a_request_holds_the_digests_of_the_loras_that_its_list_and_its_prompt_name(drawer: ModelCard) -> None:
    asked = GenerateRequest.model_validate(
        {
            "prompt": "a <lora:red-ish:-0.5> (cat:1.2) <lora:ink>",
            "prompt_syntax": "weighted",
            "loras": [],
        }
    )
    resolved = resolve(asked, drawer, seed=1)
    assert resolved.prompt == "a (cat:1.2)"
    assert [(one.name, one.scale, one.digest) for one in resolved.loras] == [("red-ish", -0.5, RED), ("ink", 1.0, INK)]
    assert resolve(resolved, drawer, seed=2) == resolved
    plain = resolve(asked.model_copy(update={"prompt_syntax": None}), drawer, seed=1)
    assert (plain.prompt, plain.loras) == (asked.prompt, ())
    assert "loras" not in plain.model_dump(mode="json")
    listed = resolve(GenerateRequest.model_validate({"prompt": "a", "loras": [{"name": "ink"}]}), drawer, seed=1)
    keys = {
        result_key(one.model_dump(mode="json"), drawer.drawn_by)
        for one in (
            listed,
            listed.model_copy(update={"loras": ()}),
            listed.model_copy(update={"loras": (listed.loras[0].model_copy(update={"scale": 0.5}),)}),
            listed.model_copy(update={"loras": (listed.loras[0].model_copy(update={"digest": RED}),)}),
        )
    }
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"loras": [{"name": "ink"}, {"name": "red-isch"}]}, "loras.1.name", "Did you mean 'red-ish'"),
        ({"loras": [{"name": "foreign"}]}, "loras.0.name", "is for Flux, and the model is Stable Diffusion 1"),
        ({"loras": [{"name": "ink"}, {"name": "ink"}]}, "loras", "twice"),
        ({"loras": [{"name": "ink", "digest": RED}]}, "loras.0.digest", "another file"),
        ({"prompt": "a <lora:red-isch>", "loras": [{"name": "ink"}]}, "prompt", "Did you mean 'red-ish'"),
        ({"prompt": "a <lora:ink:nan>"}, "prompt", "a scale from -10 to 10"),
        ({"prompt": "a <lora:ink:99>"}, "prompt", "a scale from -10 to 10"),
        ({"prompt": "a <lora:ink:1:2>"}, "prompt", "a name and a scale"),
        ({"prompt": "a <lora:../ink:1>"}, "prompt", "a path"),
        ({"prompt": "<lora:ink:1>", "loras": [{"name": f"x{one}"} for one in range(4)]}, "loras", "At most 4"),
    ],
)
def test_what_can_not_be_used_is_refused_by_name(
    fields: dict[str, Any], field: str, message: str, drawer: ModelCard
) -> None:
    asked = GenerateRequest.model_validate({"prompt": "a cat", "prompt_syntax": "weighted", **fields})
    with pytest.raises(InvalidRequest, match=message) as refused:
        resolve(asked, drawer, seed=1)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "lora",
    [
        {"name": "loras/ink"},
        {"name": ".."},
        {"name": "C:\\ink"},
        {"name": "ink", "scale": float("nan")},
        {"name": "ink", "scale": 1e9},
        {"name": "ink", "weight": 1},
        {},
    ],
)
def test_a_lora_is_a_name_and_a_finite_scale(lora: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GenerateRequest.model_validate({"loras": [lora]})


def test_a_model_without_loras_refuses_them(card: ModelCard) -> None:
    asked = GenerateRequest.model_validate({"class_label": 1, "loras": [{"name": "ink"}]})
    with pytest.raises(InvalidRequest, match="takes no LoRAs"):
        resolve(asked, card, seed=1)


def test_pictures_of_a_sweep_have_the_same_loras(drawer: ModelCard) -> None:
    shared = GenerateRequest(prompt_syntax=PromptSyntax.WEIGHTED)
    same = SweepRequest(request=shared, prompts=("a <lora:ink:1>", "b <lora:ink:1>"))
    resolved = resolve_sweep(same, drawer, seed=1)
    assert resolved.sweep is not None
    assert (resolved.sweep.prompts, len(resolved.loras)) == (("a", "b"), 1)
    with pytest.raises(InvalidRequest, match="different LoRAs"):
        resolve_sweep(SweepRequest(request=shared, prompts=("a <lora:ink:1>", "b")), drawer, seed=1)


def test_a_picture_tells_its_loras_and_is_drawn_again_with_the_same_files(drawer: ModelCard) -> None:
    asked = GenerateRequest.model_validate({"prompt": "a cat", "seed": 3, "loras": [{"name": "ink", "scale": 0.8}]})
    request = resolve(asked, drawer, seed=0)
    text = parameters_of(request, drawer)
    assert text.startswith("a cat <lora:ink:0.8>\n")
    assert text.endswith(f'Lora hashes: "ink: {INK[:12]}"')
    png = encoded_picture(png_bytes(Image.new("L", (8, 8)), request, 0, drawer))
    from_picture, _ = again(GenerateRequest(from_image=png))
    assert resolve(from_picture, drawer, seed=9).loras == request.loras
    replaced = drawer.model_copy(update={"loras": (LoraOnCard(name="ink", digest=RED),)})
    with pytest.raises(InvalidRequest, match="another file"):
        resolve(from_picture, replaced, seed=9)
    whichever, _ = again(GenerateRequest(from_image=png, model="emoji"))
    assert resolve(whichever, replaced, seed=9).loras[0].digest == RED


def test_a1111s_prompts_name_loras_of_every_model_that_takes_prompts(drawer: ModelCard) -> None:
    for model in (drawer, drawer.model_copy(update={"prompt_syntaxes": ()})):
        request, _ = request_of(TextToImage(prompt="a cat <lora:ink:0.8>"), model)
        assert (request.prompt, [(one.name, one.scale) for one in request.loras]) == ("a cat", [("ink", 0.8)])


def test_the_command_line_takes_a_name_and_perhaps_a_scale() -> None:
    assert loras_of(["ink:0.8", "red-ish"]) == [{"name": "ink", "scale": 0.8}, {"name": "red-ish"}]
    assert loras_of(None) is None
    with pytest.raises(Exception, match=r"such as ink:0\.8"):
        loras_of(["ink:much"])
