"""`resolve`: turn a request and a model's card into a request with everything decided, or an error that says why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cynosure.contract import (
    MAX_CONDITION_TERMS,
    ClassifierBase,
    ClassifierCondition,
    GenerateRequest,
    GuidanceMode,
    GuidanceRule,
    IntervalUnit,
    ModelCard,
    ResolvedRequest,
)
from cynosure.errors import InvalidRequest, UnknownSampler, UnsupportedField
from cynosure.hints import listed
from cynosure.resolving.controls import resolved_controls
from cynosure.resolving.image_prompts import check_image_prompts
from cynosure.resolving.labels import label_index
from cynosure.resolving.loras import resolved_loras, without_marks
from cynosure.resolving.respacing import respaced_steps
from cynosure.resolving.sizes import drawn_size

_NEEDS_CONDITION = (GuidanceMode.CLASSIFIER_FREE, GuidanceMode.COMBINED)
_USES_CLASSIFIER = (GuidanceMode.CLASSIFIER, GuidanceMode.COMBINED)


def resolve(request: GenerateRequest, card: ModelCard, *, seed: int) -> ResolvedRequest:
    """Fill in `card`'s defaults and refuse what its model can't do.

    Pure and quick: the same arguments give the same result, and pictures are not opened (`detached` does that).

    Args:
        request: a request for this model.
        card: what the model can do.
        seed: used if the request has none.

    Raises:
        InvalidRequest: names the field and says what would be right.
    """
    _refuse_what_the_model_lacks(request, card)
    if request.image_prompts and request.prompt is None:
        request = request.model_copy(update={"prompt": ""})
    label = None if request.class_label is None else label_index(request.class_label, card)
    has_condition = label is not None or request.prompt is not None
    mode = request.guidance_mode or (card.defaults.guidance_mode if has_condition else GuidanceMode.NONE)
    _check_mode(request, mode, label, card)
    _check_refinements(request, mode)
    width, height = drawn_size(request, card, is_classified=mode in _USES_CLASSIFIER)
    guidance_scale, classifier_scale = _scales(request, mode, card)
    profile = request.profile or card.defaults.profile
    sampler = request.sampler or card.default_sampler(profile)
    _check_sampler(request, sampler, card)
    steps = _steps(request, sampler, card)
    _check_presence_of_pictures(request, card, steps)
    clip = card.clips(profile, sampler) if request.clip is None else request.clip
    if card.must_clip and mode in _USES_CLASSIFIER and not clip and request.dynamic_threshold is None:
        raise InvalidRequest(
            f"'{card.name}' starts from pure noise, where the classifier's term is multiplied by about 20,000: "
            "set clip to true, or give dynamic_threshold.",
            field="clip",
        )
    decided = {
        "model": card.name,
        "class_label": label,
        "guidance_mode": mode,
        "guidance_scale": guidance_scale,
        "classifier_scale": classifier_scale,
        "classifier_base": _classifier_base(request, mode, card),
        "sampler": sampler,
        "steps": steps,
        "seed": seed if request.seed is None else request.seed,
        **_reading(request, card),
        "width": width,
        "height": height,
        "profile": profile,
        "clip": clip,
        "classifier_condition": _condition(request, card),
    }
    # Every value was validated with the request, or comes from the card.
    return ResolvedRequest.model_construct(**(dict(request) | decided))


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"


def _refuse_what_the_model_lacks(request: GenerateRequest, card: ModelCard) -> None:
    if not card.takes_prompt:
        for field in ("prompt", "negative_prompt"):
            if getattr(request, field) is not None:
                raise UnsupportedField(
                    field, f"'{card.name}' takes no prompts. Give class_label, one of: {listed(card.labels)}."
                )
    check_image_prompts(request.image_prompts, card)
    if request.cache is not None:
        if not card.takes_cache:
            raise UnsupportedField("cache", f"'{card.name}' can't draw with cache here; leave it out.")
        if request.controls:
            raise InvalidRequest("cache can't be combined with controls: leave one of them out.", field="cache")
    if request.profile is not None and request.profile not in card.profiles:
        raise UnsupportedField("profile", f"No profile '{request.profile}'; known: {_list(card.profiles)}.")
    if request.num_images > card.max_images:
        raise InvalidRequest(f"At most {card.max_images} pictures per job.", field="num_images")


def _check_sampler(request: GenerateRequest, sampler: str, card: ModelCard) -> None:
    if sampler not in card.samplers:
        raise UnknownSampler(sampler, card.samplers)
    if request.eta > 0 and sampler not in card.eta_samplers:
        raise UnsupportedField("eta", f"Sampler '{sampler}' takes no eta; these do: {_list(card.eta_samplers)}.")
    if request.guidance_rule is GuidanceRule.CFG_PLUS_PLUS and sampler not in card.cfg_plus_plus_samplers:
        raise UnsupportedField(
            "guidance_rule",
            f"Sampler '{sampler}' does not support cfg++; these do: {_list(card.cfg_plus_plus_samplers)}.",
        )


def _steps(request: GenerateRequest, sampler: str, card: ModelCard) -> int:
    """The number of steps that will be run."""
    options = (
        ("timestep_spacing", card.spacings.get(sampler, ())),
        ("sigma_schedule", card.sigma_schedules.get(sampler, ())),
    )
    for field, known in options:
        value = getattr(request, field)
        if value is not None and value not in known:
            raise UnsupportedField(field, f"Sampler '{sampler}' has no {field} '{value}'; it has: {_list(known)}.")
    if request.timestep_respacing is not None:
        if sampler not in card.respaced_samplers:
            raise UnsupportedField(
                "timestep_respacing",
                f"Sampler '{sampler}' takes no timestep_respacing; these do: {_list(card.respaced_samplers)}.",
            )
        respaced = respaced_steps(request.timestep_respacing, card.max_steps)
        if request.steps not in (None, respaced):  # a resolved request names both, and they agree
            raise InvalidRequest("Give steps or timestep_respacing, not both.", field="timestep_respacing")
        return respaced
    steps = request.steps or card.defaults.steps
    most = card.sampler_max_steps.get(sampler, card.max_steps)
    if steps > most:
        raise InvalidRequest(f"'{card.name}' takes at most {most} steps with sampler '{sampler}'.", field="steps")
    return steps


def _reading(request: GenerateRequest, card: ModelCard) -> dict[str, Any]:
    """What is read, and how; `None` for what the model leaves no choice of."""
    for field, known in (("long_prompt", card.long_prompts), ("prompt_syntax", card.prompt_syntaxes)):
        value = getattr(request, field)
        if value is not None and value not in known:
            has = f"has no {field} '{value}'; it has: {_list(known)}" if known else f"takes no {field}"
            raise UnsupportedField(field, f"'{card.name}' {has}.")
    if (request.clip_skip or 0) > card.max_clip_skip:
        takes = f"takes a clip_skip of 1 to {card.max_clip_skip}" if card.max_clip_skip else "takes no clip_skip"
        raise UnsupportedField("clip_skip", f"'{card.name}' {takes}.")
    read = without_marks(request)
    return {
        "prompt": read.prompt,
        "loras": resolved_loras(read.loras, card, in_list=len(request.loras)),
        "controls": resolved_controls(request.controls, card),
        "long_prompt": request.long_prompt or next(iter(card.long_prompts), None),
        "prompt_syntax": request.prompt_syntax or next(iter(card.prompt_syntaxes), None),
        "clip_skip": request.clip_skip or (1 if card.max_clip_skip else None),
    }


def _check_presence_of_pictures(request: GenerateRequest, card: ModelCard, steps: int) -> None:
    if card.needs_init_image and request.init_image is None:
        raise InvalidRequest(f"'{card.name}' enlarges pictures: give init_image.", field="init_image")
    for field in ("strength", "mask_image"):
        if getattr(request, field) is not None:
            if card.needs_init_image:
                raise UnsupportedField(field, f"'{card.name}' enlarges pictures; it doesn't redraw them.")
            if request.init_image is None:
                raise InvalidRequest(f"{field} needs an init_image.", field=field)
    if request.strength is not None and int(steps * request.strength) < 1:
        raise InvalidRequest(
            f"A strength of {request.strength:g} is less than one of the {steps} steps; give at least {1 / steps:.3g}.",
            field="strength",
        )


def _condition(request: GenerateRequest, card: ModelCard) -> ClassifierCondition | None:
    """The classifier's condition with labels by index."""
    condition = request.classifier_condition
    if condition is None:
        return None

    def indices(labels: Iterable[int | str]) -> tuple[int, ...]:
        return tuple(label_index(label, card) for label in labels)

    weights = {str(label_index(name, card)): weight for name, weight in condition.labels.items()}
    if len(weights) < len(condition.labels):
        raise InvalidRequest("The condition weighs a class twice, by two of its names.", field="classifier_condition")
    if not weights and not condition.any_of and not condition.none_of:
        raise InvalidRequest("The condition is empty: give labels, any_of or not.", field="classifier_condition")
    if len(weights) + bool(condition.any_of) + bool(condition.none_of) > MAX_CONDITION_TERMS:
        raise InvalidRequest(f"The condition has more than {MAX_CONDITION_TERMS} terms.", field="classifier_condition")
    none_of = indices(condition.none_of)
    if len(set(none_of)) == len(card.labels):
        raise InvalidRequest("'not' excludes every label.", field="classifier_condition")
    return ClassifierCondition(labels=weights, any_of=indices(condition.any_of), none_of=none_of)


def _check_mode(request: GenerateRequest, mode: GuidanceMode, label: int | None, card: ModelCard) -> None:
    with_a_guide = request.guide_model is not None and mode is GuidanceMode.CLASSIFIER_FREE
    if mode not in card.guidance_modes and not with_a_guide:
        raise UnsupportedField(
            "guidance_mode", f"'{card.name}' has no guidance_mode '{mode}'; it has: {_list(card.guidance_modes)}."
        )
    if request.classifier_condition is not None and card.classifier_takes_prompt:
        raise UnsupportedField(
            "classifier_condition",
            f"The classifier of '{card.name}' is conditioned on the prompt; leave classifier_condition out.",
        )
    if request.classifier_condition is not None and mode not in _USES_CLASSIFIER:
        raise UnsupportedField(
            "classifier_condition", f"guidance_mode '{mode}' uses no classifier; leave classifier_condition out."
        )
    prompts_suffice = mode is GuidanceMode.CLASSIFIER_FREE or card.classifier_takes_prompt
    has_prompt = request.prompt is not None and prompts_suffice
    steered = request.classifier_condition is not None and (
        mode is GuidanceMode.CLASSIFIER or (mode is GuidanceMode.COMBINED and request.prompt is not None)
    )
    if mode is not GuidanceMode.NONE and label is None and not has_prompt and not steered:
        if card.takes_prompt and not card.labels:
            raise InvalidRequest(f"guidance_mode '{mode}' needs a prompt.", field="prompt")
        raise InvalidRequest(
            f"guidance_mode '{mode}' needs a class_label, one of: {listed(card.labels)}.",
            field="class_label",
        )


def _check_refinements(request: GenerateRequest, mode: GuidanceMode) -> None:
    if request.guidance_interval_unit is IntervalUnit.FRACTION and request.guidance_interval[1] > 1:
        raise InvalidRequest(
            "In unit 'fraction' the interval must lie between 0 and 1; for other units, give guidance_interval_unit.",
            field="guidance_interval",
        )
    for field, value in (("guide_model", request.guide_model), ("guidance_rule", request.guidance_rule)):
        if mode not in _NEEDS_CONDITION and value not in (None, GuidanceRule.STANDARD):
            raise UnsupportedField(field, f"{field} needs classifier-free guidance; guidance_mode is '{mode}'.")
    if mode is GuidanceMode.NONE and request.guidance_interval != (0.0, 1.0):
        raise UnsupportedField(
            "guidance_interval",
            "guidance_mode 'none' has no interval: leave guidance_interval out, or choose another guidance_mode.",
        )
    if mode not in _NEEDS_CONDITION and request.guidance_rescale:
        raise UnsupportedField(
            "guidance_rescale", f"guidance_rescale needs classifier-free guidance; guidance_mode is '{mode}'."
        )


def _scales(request: GenerateRequest, mode: GuidanceMode, card: ModelCard) -> tuple[float | None, float | None]:
    if mode is GuidanceMode.NONE and request.guidance_scale is not None:
        raise UnsupportedField(
            "guidance_scale",
            "guidance_mode 'none' has no scale: leave guidance_scale out, or choose another guidance_mode.",
        )
    if mode is not GuidanceMode.COMBINED and request.classifier_scale is not None:
        raise UnsupportedField(
            "classifier_scale",
            "classifier_scale needs guidance_mode 'combined'; in mode 'classifier' the scale is guidance_scale.",
        )
    guidance_scale, classifier_scale = request.guidance_scale, request.classifier_scale
    if guidance_scale is None and mode in _NEEDS_CONDITION:
        guidance_scale = card.defaults.guidance_scale
    if guidance_scale is None and mode is GuidanceMode.CLASSIFIER:
        guidance_scale = card.defaults.classifier_scale
    if classifier_scale is None and mode is GuidanceMode.COMBINED:
        classifier_scale = card.defaults.classifier_scale
    return guidance_scale, classifier_scale


def _classifier_base(request: GenerateRequest, mode: GuidanceMode, card: ModelCard) -> ClassifierBase | None:
    base = request.classifier_base
    if mode is not GuidanceMode.CLASSIFIER:
        if base is not None:
            raise UnsupportedField("classifier_base", "classifier_base needs guidance_mode 'classifier'.")
        return None
    if base is not None and base not in card.classifier_bases:
        raise UnsupportedField(
            "classifier_base", f"'{card.name}' has no classifier_base '{base}'; it has: {_list(card.classifier_bases)}."
        )
    return base or card.classifier_bases[0]
