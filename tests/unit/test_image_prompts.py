"""Image prompts in requests: their pictures kept apart and asked for again, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cynosure.cli.shared import image_prompts_of
from cynosure.contract import GenerateRequest, GuidanceMode, IpAdapterOnCard, ModelCard
from cynosure.errors import InvalidRequest
from cynosure.metadata import again, encoded_picture, made_from, png_bytes
from cynosure.refusals import parsed
from cynosure.resolving import attached, detached, resolve, result_key
from tests.unit.test_controls import picture
from workers.drawing.specs import course_specs_of, specs_of


@pytest.fixture
def looker(emoji: ModelCard) -> ModelCard:
    return emoji.model_copy(update={"ip_adapter": IpAdapterOnCard(kind="plain", digest="a" * 64)})


def asked(*prompts: dict[str, Any], **more: Any) -> GenerateRequest:
    return GenerateRequest.model_validate({"prompt": "a cat", "seed": 3, "image_prompts": prompts, **more})


def test_its_pictures_are_kept_apart_from_the_request(looker: ModelCard) -> None:
    request = resolve(asked({"image": picture(), "scale": 0.6}, {"image": picture(120)}), looker, seed=0)
    apart, pictures = detached(request)
    assert pictures == {"image_prompts.0.image": picture(), "image_prompts.1.image": picture(120)}
    assert apart.inputs.keys() == pictures.keys()
    shown = apart.model_dump(mode="json")
    assert shown["image_prompts"] == [{"scale": 0.6}, {"scale": 1.0}]
    assert attached(type(apart).model_validate(shown), pictures) == request
    assert [spec.image_prompts for spec in course_specs_of(apart, looker)] == [()]
    [spec] = specs_of("job", request, looker)
    assert [(prompt.scale, prompt.image.shape) for prompt in spec.image_prompts] == [
        (0.6, (28, 28, 3)),
        (1, (28, 28, 3)),
    ]


def test_results_are_cached_by_pictures_and_scales(looker: ModelCard) -> None:
    prompt = {"image": picture()}
    used: list[list[dict[str, Any]]] = [
        [],
        [prompt],
        [{**prompt, "scale": 0.5}],
        [{"image": picture(91)}],
        [prompt] * 2,
    ]
    apart = [detached(resolve(asked(*prompts), looker, seed=0))[0].model_dump(mode="json") for prompts in used]
    assert len({result_key(request, looker.drawn_by) for request in apart}) == len(used)
    assert "image_prompts" not in apart[0]


def test_a_picture_alone_is_a_prompt(looker: ModelCard) -> None:
    request = resolve(asked({"image": picture()}, prompt=None), looker, seed=0)
    assert (request.prompt, request.guidance_mode) == ("", GuidanceMode.CLASSIFIER_FREE)


@pytest.mark.parametrize(
    ("prompts", "field", "message"),
    [
        ([{"image": "", "scale": float("nan")}], "image_prompts.0.scale", "finite number"),
        ([{"image": "", "scale": 1e9}], "image_prompts.0.scale", "at most 10"),
        ([{"image": "", "scale": -0.5}], "image_prompts.0.scale", "at least 0"),
        ([{"picture": ""}], "image_prompts.0.picture", "Known: image, scale"),
        ([{"image": ""}] * 5, "image_prompts", "at most 4"),
    ],
)
def test_what_is_no_image_prompt_is_refused(prompts: list[dict[str, Any]], field: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        parsed(GenerateRequest, {"image_prompts": prompts})
    assert refused.value.field == field


def test_what_can_not_be_used_is_refused_by_name(looker: ModelCard, emoji: ModelCard) -> None:
    for card, prompt, field, message in (
        (emoji, {"image": picture()}, "image_prompts", "takes no image prompts: it has no IP-Adapter"),
        (looker, {"scale": 1}, "image_prompts.0.image", "has no image"),
        (looker, {"image": "bm8gcGljdHVyZQ=="}, "image_prompts.0.image", "must be a base64-encoded PNG"),
    ):
        with pytest.raises(InvalidRequest, match=message) as refused:
            detached(resolve(asked(prompt), card, seed=0))
        assert refused.value.field == field


def test_a_picture_tells_its_image_prompts_and_asks_for_their_pictures_again(looker: ModelCard) -> None:
    request = resolve(asked({"image": picture(), "scale": 0.6}), looker, seed=0)
    [told] = made_from(request, 0, looker, None).request["image_prompts"]
    assert (told["scale"], len(told["image_sha256"]), "image" in told) == (0.6, 64, False)
    png = encoded_picture(png_bytes(Image.new("L", (8, 8)), request, 0, looker))
    with pytest.raises(InvalidRequest, match=r"made with image_prompts \(scale 0\.6\): send image_prompts") as refused:
        again(GenerateRequest(from_image=png))
    assert refused.value.field == "image_prompts"
    sent = {"from_image": png, "image_prompts": [{"image": picture()}]}
    assert resolve(again(GenerateRequest.model_validate(sent))[0], looker, seed=9) == request


def test_the_command_line_takes_a_picture_and_a_scale(tmp_path: Path) -> None:
    file = tmp_path / "a:b.png"
    file.write_bytes(b"x")
    assert image_prompts_of([f"{file}:0.6", str(file)]) == [{"image": "eA==", "scale": 0.6}, {"image": "eA=="}]
    assert image_prompts_of(None) is None
    for text in (f"{file}:much", f"{file}.gone", f"{file}.gone:1"):
        with pytest.raises(Exception, match=r"such as photo\.png:0\.6"):
            image_prompts_of([text])
