"""`resolve`: defaults are filled in, what the model can't do is refused by field, and a resolved request stays."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from cynosure.contract import GenerateRequest, GuidanceMode, ModelCard, ResolvedRequest, Sizes, SweepRequest
from cynosure.errors import InvalidRequest, UnknownLabel, UnknownSampler, UnsupportedField
from cynosure.resolving import cells_of, choose, detached, label_index, resolve, resolve_sweep


def test_an_empty_request_is_an_unguided_picture_of_anything(card: ModelCard) -> None:
    resolved = resolve(GenerateRequest(), card, seed=11)
    assert (resolved.guidance_mode, resolved.class_label, resolved.guidance_scale) == (GuidanceMode.NONE, None, None)
    assert (resolved.sampler, resolved.steps, resolved.seed) == ("ddim", 50, 11)


def test_a_label_brings_the_models_guidance_with_it(card: ModelCard) -> None:
    resolved = resolve(GenerateRequest(class_label=" Sneaker "), card, seed=1)
    assert (resolved.class_label, resolved.guidance_mode, resolved.guidance_scale) == (2, "classifier_free", 3.0)


@pytest.mark.parametrize("mode", ["classifier_free", "classifier", "combined"])
def test_each_mode_takes_its_own_default_scales(card: ModelCard, mode: str) -> None:
    resolved = resolve(GenerateRequest(class_label=0, guidance_mode=mode), card, seed=1)
    expected = {"classifier_free": (3.0, None), "classifier": (5.0, None), "combined": (3.0, 5.0)}
    assert (resolved.guidance_scale, resolved.classifier_scale) == expected[mode]


def encoded_picture(width: int, height: int) -> str:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


PICTURE, BOMB = encoded_picture(28, 28), encoded_picture(5000, 5000)

REFUSED: list[tuple[dict[str, Any], type[InvalidRequest], str, str]] = [
    ({"class_label": "sneker"}, UnknownLabel, "class_label", "Did you mean 'sneaker'"),
    ({"class_label": 3}, UnknownLabel, "class_label", "0 to 2"),
    ({"class_label": -1}, UnknownLabel, "class_label", "0 to 2"),
    ({"sampler": "eular"}, UnknownSampler, "sampler", "Did you mean 'euler'"),
    ({"prompt": "a shoe"}, UnsupportedField, "prompt", "takes no prompts"),
    ({"guidance_mode": "classifier"}, InvalidRequest, "class_label", "needs a class_label"),
    ({"scale": 3}, UnsupportedField, "guidance_scale", "has no scale"),
    ({"class_label": 1, "classifier_scale": 3}, UnsupportedField, "classifier_scale", "needs guidance_mode"),
    ({"class_label": 1, "classifier_base": "conditional"}, UnsupportedField, "classifier_base", "needs guidance_mode"),
    ({"guidance_interval": (0, 0.5)}, UnsupportedField, "guidance_interval", "has no interval"),
    (
        {"class_label": 1, "guidance_mode": "classifier", "guidance_rescale": 0.5},
        UnsupportedField,
        "guidance_rescale",
        "classifier-free",
    ),
    ({"eta": 0.5, "sampler": "euler"}, UnsupportedField, "eta", "these do: ddim"),
    ({"steps": 1000, "sampler": "euler"}, InvalidRequest, "steps", "at most 999 steps with sampler 'euler'"),
    ({"width": 64}, UnsupportedField, "width", "28×28"),
    ({"height": 0}, UnsupportedField, "height", "28×28"),
    ({"original_size": (64, 64)}, UnsupportedField, "original_size", "told nothing of sizes"),
    ({"long_prompt": "chunk"}, UnsupportedField, "long_prompt", "takes no long_prompt"),
    ({"prompt_syntax": "plain"}, UnsupportedField, "prompt_syntax", "takes no prompt_syntax"),
    ({"clip_skip": 1}, UnsupportedField, "clip_skip", "takes no clip_skip"),
    ({"init_image": "aGk="}, InvalidRequest, "init_image", "must be a base64-encoded PNG"),
    ({"init_image": BOMB}, InvalidRequest, "init_image", "at most 16,777,216"),
    ({"init_image": PICTURE, "strength": 0.001}, InvalidRequest, "strength", "at least 0.02"),
    ({"mask_image": PICTURE}, InvalidRequest, "mask_image", "needs an init_image"),
    ({"timestep_respacing": "ddim60", "steps": None}, InvalidRequest, "timestep_respacing", "nearest is ddim59"),
    ({"timestep_respacing": "600,2"}, InvalidRequest, "timestep_respacing", "1 to 500"),
    ({"timestep_respacing": "50", "sampler": "euler"}, UnsupportedField, "timestep_respacing", "ddpm, ddim"),
    ({"timestep_spacing": "even"}, UnsupportedField, "timestep_spacing", "it has: leading, trailing"),
    ({"sigma_schedule": "karras"}, UnsupportedField, "sigma_schedule", "has no sigma_schedule"),
    ({"classifier_condition": {"any_of": [0, 1]}}, UnsupportedField, "classifier_condition", "uses no classifier"),
    (
        {"guidance_mode": "classifier", "classifier_condition": {"not": [0, 1, 2]}},
        InvalidRequest,
        "classifier_condition",
        "excludes every label",
    ),
    ({"guidance_mode": "classifier", "class_label": 1, "clip": False}, InvalidRequest, "clip", "20,000"),
    ({"class_label": 1, "guidance_interval": (1, 4)}, InvalidRequest, "guidance_interval", "guidance_interval_unit"),
    ({"guide_model": "other"}, UnsupportedField, "guide_model", "needs classifier-free"),
    ({"profile": "adm"}, UnsupportedField, "profile", "known: cynosure"),
]


@pytest.mark.parametrize(("fields", "kind", "field", "says"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_the_model_cant_do_is_refused_by_field(
    card: ModelCard, fields: dict[str, Any], kind: type[InvalidRequest], field: str, says: str
) -> None:
    limited = card.model_copy(update={"sampler_max_steps": {"euler": 999}})
    with pytest.raises(kind) as refusal:
        detached(resolve(GenerateRequest.model_validate(fields), limited, seed=0))
    assert refusal.value.field == field
    assert says in refusal.value.detail


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 100_000}, "steps"),
        ({"scale": float("nan")}, "scale"),
        ({"scale": 101}, "scale"),
        ({"seed": 2**63}, "seed"),
        ({"num_images": 65}, "num_images"),
        ({"guidance_interval": (0.8, 0.2)}, "guidance_interval"),
        ({"class_label": True}, "class_label"),
        ({"colour": "red"}, "colour"),
    ],
    ids=lambda value: str(value),
)
def test_the_door_refuses_what_no_model_could_do(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        GenerateRequest.model_validate(fields)
    assert refusal.value.errors()[0]["loc"][0] == field


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            "class_label": st.sampled_from([0, 2, "sneaker"]),
            "guidance_mode": st.sampled_from(list(GuidanceMode)),
            "guidance_scale": st.floats(-100, 100),
            "classifier_scale": st.floats(-100, 100),
            "guidance_rescale": st.sampled_from([0.0, 0.7]),
            "sampler": st.sampled_from(["ddim", "euler"]),
            "steps": st.integers(1, 1000),
            "seed": st.integers(0, 2**63 - 1),
            "num_images": st.integers(1, 64),
        },
    )
)
def test_a_resolved_request_resolves_to_itself(card: ModelCard, fields: dict[str, Any]) -> None:
    try:
        resolved = resolve(GenerateRequest.model_validate(fields), card, seed=5)
    except InvalidRequest:
        return
    again = GenerateRequest.model_validate(resolved.model_dump(mode="json"))
    assert resolve(again, card, seed=99) == resolved


def test_a_sweeps_cells_are_its_axes_crossed(card: ModelCard) -> None:
    asked = SweepRequest(
        request=GenerateRequest(guidance_mode="classifier_free", seed=4),
        class_labels=("sneaker", 0),
        guidance_scales=(1, 2),
    )
    request = resolve_sweep(asked, card, seed=0)
    cells = [(cell.class_label, cell.guidance_scale, cell.seed, index) for cell, index in cells_of(request)]
    assert cells == [(2, 1.0, 4, 0), (2, 2.0, 4, 0), (0, 1.0, 4, 0), (0, 2.0, 4, 0)]
    assert ResolvedRequest.model_validate_json(request.model_dump_json()) == request


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"class_labels": ["sneaker"]}, "seeds"),
        ({"class_labels": ["sneaker", 2]}, "class_labels"),
        ({"class_labels": ["sneker", 0]}, "class_label"),
        ({"guidance_scales": [1, 1], "class_labels": [0]}, "guidance_scales"),
        ({"prompts": ["a", "b"]}, "prompt"),
        ({"class_labels": [0, 1], "prompts": ["a"]}, "prompts"),
        ({"class_labels": [0, 1], "request": {"num_images": 2}}, "num_images"),
        ({"class_labels": [0, 1, 2], "seeds": list(range(100))}, "seeds"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_sweep_that_cannot_be_is_refused_by_field(card: ModelCard, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        resolve_sweep(SweepRequest.model_validate(fields), card, seed=0)
    assert refusal.value.field == field


def test_a_condition_is_resolved_to_class_indices(card: ModelCard) -> None:
    asked = GenerateRequest.model_validate(
        {
            "guidance_mode": "classifier",
            "classifier_condition": {"labels": {"sneaker": 1, "0": 0.5}, "not": ["Trouser"]},
        }
    )
    resolved = resolve(asked, card, seed=0)
    assert resolved.classifier_condition is not None
    assert resolved.classifier_condition.labels == {"2": 1, "0": 0.5}
    assert ResolvedRequest.model_validate_json(resolved.model_dump_json()) == resolved


def test_beside_a_prompt_the_classifier_may_be_asked_for_what_the_denoiser_is_not_told(card: ModelCard) -> None:
    asked = {"guidance_mode": "combined", "classifier_condition": {"labels": {"sneaker": 1}}}
    prompted = card.model_copy(update={"takes_prompt": True})
    resolved = resolve(GenerateRequest.model_validate({**asked, "prompt": "red"}), prompted, seed=0)
    assert resolved.class_label is None
    with pytest.raises(InvalidRequest, match="needs a class_label"):
        resolve(GenerateRequest.model_validate(asked), card, seed=0)


def test_a_respacing_string_decides_the_steps(card: ModelCard) -> None:
    assert resolve(GenerateRequest(timestep_respacing="10,15,20"), card, seed=0).steps == 45
    assert resolve(GenerateRequest(timestep_respacing="fast27"), card, seed=0).steps == 27


IMAGENET = ("tench, Tinca tinca", "crane", "maillot", "crane", "maillot, tank suit", "African grey, Psittacus")


@pytest.mark.parametrize(
    ("label", "index"),
    [
        ("tench", 0),
        ("TINCA  TINCA".replace("  ", " "), 0),
        (" Tench,Tinca tinca ", 0),
        ("tank suit", 4),
        ("maillot, tank suit", 4),
        ("african grey", 5),
        ("3", 3),
        (3, 3),
    ],
)
def test_each_name_in_a_label_names_its_class(card: ModelCard, label: int | str, index: int) -> None:
    assert label_index(label, card.model_copy(update={"labels": IMAGENET})) == index


def test_a_name_of_several_classes_is_refused_with_their_indices(card: ModelCard) -> None:
    imagenet = card.model_copy(update={"labels": IMAGENET})
    with pytest.raises(InvalidRequest, match=r"'Crane' names several .* 1 \(crane\); 3 \(crane\)\. Give the index"):
        label_index("Crane", imagenet)
    with pytest.raises(InvalidRequest, match=r"2 \(maillot\); 4 \(maillot, tank suit\)"):
        label_index("maillot", imagenet)
    with pytest.raises(UnknownLabel, match="Did you mean 'Tinca tinca'"):
        label_index("tinca tinka", imagenet)


def test_a_condition_weighs_each_class_once(card: ModelCard) -> None:
    weights = {"classifier_condition": {"labels": {"sneaker": 1, "2": 2}}, "guidance_mode": "classifier"}
    with pytest.raises(InvalidRequest, match="weighs a class twice"):
        resolve(GenerateRequest.model_validate(weights), card, seed=0)


@pytest.mark.parametrize(
    ("prompted", "labels", "chosen"),
    [
        (False, [], "fashion"),
        (True, [], "emoji"),
        (False, ["noto"], "emoji"),
        (False, ["sneaker"], "fashion"),
        (False, [1], "fashion"),
        (False, [2], "fashion"),
        (True, [1], "emoji"),
        (True, ["Noto"], "emoji"),
    ],
)
def test_labels_and_prompt_choose_the_model(
    card: ModelCard, emoji: ModelCard, prompted: bool, labels: list[int | str], chosen: str
) -> None:
    cards = {"emoji": emoji, "fashion": card}
    assert choose(cards, model=None, prompted=prompted, labels=labels).name == chosen


@pytest.mark.parametrize(
    ("prompted", "labels", "says"),
    [
        (False, ["sneker"], "No class 'sneker' in 'emoji' or 'fashion'. Did you mean 'sneaker'? 'emoji' has: noto, "),
        (False, [9], "Class 9 is out of range: 'emoji' has 0 to 1, 'fashion' has 0 to 2."),
        (True, ["sneaker"], "'emoji' was chosen because of prompt; 'fashion' has that class: set model to 'fashion'"),
        (True, [2], "set model to 'fashion', and leave prompt out."),
        (False, ["sneaker", "noto"], "No model has all of these classes: sneaker, noto."),
    ],
)
def test_a_label_that_no_model_has_is_refused_with_what_they_have(
    card: ModelCard, emoji: ModelCard, prompted: bool, labels: list[int | str], says: str
) -> None:
    cards = {"emoji": emoji, "fashion": card}
    with pytest.raises(InvalidRequest) as refusal:
        choose(cards, model=None, prompted=prompted, labels=labels)
    assert says in refusal.value.detail
    assert refusal.value.field == "class_label"


XL = Sizes(default=(1024, 1024), multiple_of=8, min_side=256, max_side=2048, max_pixels=2_500_000)


@pytest.mark.parametrize(
    ("asked", "field", "nearest"),
    [
        ((830, 1216), "width", (832, 1216)),
        ((1216, 7), "height", (1216, 256)),
        ((0, 0), "width", (256, 256)),
        ((100_000, 100_000), "width", (1576, 1576)),
        ((4096, 1024), "width", (2048, 512)),
        ((2048, 2048), "width", (1576, 1576)),
        ((1024, 100_000), "height", (256, 2048)),
    ],
)
def test_a_size_that_can_not_be_drawn_is_refused_with_the_nearest_that_can(
    emoji: ModelCard, asked: tuple[int, int], field: str, nearest: tuple[int, int]
) -> None:
    card = emoji.model_copy(update={"sizes": XL})
    width, height = asked
    with pytest.raises(UnsupportedField) as refusal:
        resolve(GenerateRequest(prompt="a cat", width=width, height=height), card, seed=0)
    assert refusal.value.field == field
    assert f"nearest that it can is width {nearest[0]}, height {nearest[1]}." in refusal.value.detail
    drawn = resolve(GenerateRequest(prompt="a cat", width=nearest[0], height=nearest[1]), card, seed=0)
    assert (drawn.width, drawn.height) == nearest


@given(width=st.integers(0, 10**6), height=st.integers(0, 10**6), step=st.sampled_from([1, 2, 8, 16]))
def test_the_nearest_size_can_be_drawn(width: int, height: int, step: int) -> None:
    sizes = Sizes(default=(64, 48), multiple_of=step, min_side=16, max_side=256, max_pixels=64 * 48 * 8)
    assert sizes.wrong_side(*sizes.nearest(width, height)) is None
    if sizes.wrong_side(width, height) is None:
        assert sizes.nearest(width, height) == (width, height)


def test_a_size_left_out_is_the_models_and_one_side_leaves_the_other(emoji: ModelCard) -> None:
    card = emoji.model_copy(update={"sizes": XL})
    sizes = [
        (drawn.width, drawn.height)
        for fields in ({}, {"width": 832}, {"width": 832, "height": 1216})
        for drawn in [resolve(GenerateRequest.model_validate({"prompt": "a cat", **fields}), card, seed=0)]
    ]
    assert sizes == [(1024, 1024), (832, 1024), (832, 1216)]


def test_a_classifier_sees_only_the_models_own_size(emoji: ModelCard) -> None:
    card = emoji.model_copy(update={"sizes": XL})
    steered = {"prompt": "a cat", "guidance_mode": "classifier"}
    resolve(GenerateRequest.model_validate({**steered, "width": 1024}), card, seed=0)
    with pytest.raises(UnsupportedField, match="classifier of 'emoji' sees only 1024×1024") as refusal:
        resolve(GenerateRequest.model_validate({**steered, "height": 1216}), card, seed=0)
    assert refusal.value.field == "height"


def test_negative_sizes_are_given_together(emoji: ModelCard) -> None:
    card = emoji.model_copy(update={"takes_size_conditioning": True})
    with pytest.raises(InvalidRequest, match="needs negative_target_size too"):
        resolve(GenerateRequest(prompt="a cat", negative_original_size=(512, 512)), card, seed=0)
