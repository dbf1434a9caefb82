"""ControlNets in requests: found by name, held by digest, their pictures kept apart and asked for again."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cynosure.cli.shared import controls_of
from cynosure.contract import ControlOnCard, GenerateRequest, ModelCard
from cynosure.errors import InvalidRequest
from cynosure.metadata import again, encoded_picture, made_from, png_bytes
from cynosure.refusals import parsed
from cynosure.resolving import attached, detached, resolve, result_key
from workers.drawing.specs import course_specs_of, specs_of

CANNY, DEPTH = "a" * 64, "b" * 64


def picture(shade: int = 90) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (28, 28), (shade, shade, shade)).save(buffer, "PNG")
    return encoded_picture(buffer.getvalue())


@pytest.fixture
def drawer(emoji: ModelCard) -> ModelCard:
    fault = "it is for Stable Diffusion XL, and the model is Stable Diffusion 1"
    controls = (
        ControlOnCard(name="canny", digest=CANNY, family="Stable Diffusion 1"),
        ControlOnCard(name="depth", digest=DEPTH, family="Stable Diffusion 1"),
        ControlOnCard(name="foreign", digest="c" * 64, family="Stable Diffusion XL", fault=fault),
    )
    return emoji.model_copy(update={"takes_controls": True, "controls": controls})


def asked(*controls: dict[str, Any]) -> GenerateRequest:
    return GenerateRequest.model_validate({"prompt": "a cat", "seed": 3, "controls": controls})


def test_a_request_holds_digests_and_its_pictures_are_kept_apart(drawer: ModelCard) -> None:
    edges = {"model": "canny", "image": picture(), "scale": 0.8, "end": 0.5, "preprocess": "canny"}
    request = resolve(asked(edges, {"model": "depth", "image": picture(120)}), drawer, seed=0)
    assert [control.digest for control in request.controls] == [CANNY, DEPTH]
    apart, pictures = detached(request)
    assert pictures == {"controls.0.image": picture(), "controls.1.image": picture(120)}
    assert apart.inputs.keys() == pictures.keys()
    shown = apart.model_dump(mode="json")
    assert shown["controls"][0] == {
        "model": "canny",
        "scale": 0.8,
        "start": 0.0,
        "end": 0.5,
        "preprocess": "canny",
        "digest": CANNY,
    }
    assert attached(type(apart).model_validate(shown), pictures) == request
    assert [spec.controls for spec in course_specs_of(apart, drawer)] == [()]
    [spec] = specs_of("job", request, drawer)
    assert [(one.model, one.scale, one.end, one.preprocess, one.digest) for one in spec.controls] == [
        ("canny", 0.8, 0.5, "canny", CANNY),
        ("depth", 1.0, 1.0, None, DEPTH),
    ]
    assert [one.image.shape for one in spec.controls] == [(28, 28, 3)] * 2
    with pytest.raises(InvalidRequest, match=r"controls\.1\.image is no longer kept"):
        attached(apart, {"controls.0.image": picture()})


def test_results_are_cached_by_controls_their_files_and_their_pictures(drawer: ModelCard) -> None:
    edges = {"model": "canny", "image": picture()}
    replaced = drawer.model_copy(update={"controls": (ControlOnCard(name="canny", digest=DEPTH),)})
    requests = [
        resolve(asked(), drawer, seed=0),
        resolve(asked(edges), drawer, seed=0),
        resolve(asked({**edges, "scale": 0.5}), drawer, seed=0),
        resolve(asked({**edges, "image": picture(91)}), drawer, seed=0),
        resolve(asked(edges), replaced, seed=0),
    ]
    keys = {result_key(detached(request)[0].model_dump(mode="json"), drawer.drawn_by) for request in requests}
    assert len(keys) == len(requests)
    assert "controls" not in requests[0].model_dump(mode="json")


@pytest.mark.parametrize(
    ("control", "field", "message"),
    [
        ({"model": "cany"}, "controls.0.model", "Did you mean 'canny'"),
        ({"model": "foreign"}, "controls.0.model", "is for Stable Diffusion XL, and the model is Stable Diffusion 1"),
        ({"model": "canny", "digest": DEPTH}, "controls.0.digest", "other files"),
        ({"model": "canny", "image": None}, "controls.0.image", "has no image"),
    ],
)
def test_what_can_not_be_used_is_refused_by_name(
    control: dict[str, Any], field: str, message: str, drawer: ModelCard
) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        resolve(asked({"image": picture(), **control}), drawer, seed=0)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ([{"model": "controls/canny"}], "a path"),
        ([{"model": "canny", "scale": float("nan")}], "finite number"),
        ([{"model": "canny", "scale": 1e9}], "at most 10"),
        ([{"model": "canny", "scale": -1}], "at least 0"),
        ([{"model": "canny", "start": 0.8, "end": 0.2}], "its start, 0.8, must be less than its end, 0.2"),
        ([{"model": "canny", "end": 2}], "at most 1"),
        ([{"model": "canny", "preprocess": "cany"}], "canny"),
        ([{"model": "canny"}] * 4, "at most 3"),
        ([{}], "is missing"),
    ],
)
def test_what_is_no_control_is_refused(controls: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        parsed(GenerateRequest, {"controls": controls})
    assert (refused.value.field or "").startswith("controls")


def test_what_is_no_picture_and_a_model_that_takes_none_are_refused(drawer: ModelCard, card: ModelCard) -> None:
    request = resolve(asked({"model": "canny", "image": "bm8gcGljdHVyZQ=="}), drawer, seed=0)
    with pytest.raises(InvalidRequest, match=r"controls\.0\.image must be a base64-encoded PNG") as refused:
        detached(request)
    assert refused.value.field == "controls.0.image"
    plain = GenerateRequest.model_validate({"class_label": 1, "controls": [{"model": "canny", "image": picture()}]})
    with pytest.raises(InvalidRequest, match="takes no ControlNets"):
        resolve(plain, card, seed=0)


def test_a_picture_tells_its_controls_and_asks_for_their_pictures_again(drawer: ModelCard) -> None:
    request = resolve(asked({"model": "canny", "image": picture(), "scale": 0.8}), drawer, seed=0)
    [told] = made_from(request, 0, drawer, None).request["controls"]
    assert "image" not in told
    assert (told["model"], told["scale"], told["digest"], len(told["image_sha256"])) == ("canny", 0.8, CANNY, 64)
    png = encoded_picture(png_bytes(Image.new("L", (8, 8)), request, 0, drawer))
    with pytest.raises(InvalidRequest, match=r"made with controls \(canny\): send controls too") as refused:
        again(GenerateRequest(from_image=png))
    assert refused.value.field == "controls"
    sent = {"from_image": png, "controls": [{"model": "canny", "image": picture()}]}
    from_picture, _ = again(GenerateRequest.model_validate(sent))
    assert resolve(from_picture, drawer, seed=9) == request
    replaced = drawer.model_copy(update={"controls": (ControlOnCard(name="canny", digest=DEPTH),)})
    with pytest.raises(InvalidRequest, match="other files"):
        resolve(from_picture, replaced, seed=9)
    whichever, _ = again(GenerateRequest.model_validate({**sent, "model": "emoji"}))
    assert resolve(whichever, replaced, seed=9).controls[0].digest == DEPTH


def test_the_command_line_takes_a_name_a_picture_and_what_else_there_is(tmp_path: Path) -> None:
    file = tmp_path / "a, b=c:d.png"
    file.write_bytes(b"x")
    assert controls_of([f"canny:{file},scale=0.8,preprocess=canny", f"depth:{file}"]) == [
        {"model": "canny", "image": "eA==", "scale": 0.8, "preprocess": "canny"},
        {"model": "depth", "image": "eA=="},
    ]
    assert controls_of(None) is None
    for text in ("canny", f"canny:{file}.gone", f":{file}", f"canny:{file},weight=1"):
        with pytest.raises(Exception, match=r"such as canny:photo\.png"):
            controls_of([text])
