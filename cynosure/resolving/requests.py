"""`resolve`: a request and a model's card make a request with everything decided, or a refusal that says why."""

from __future__ import annotations

from collections.abc import Iterable

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
from cynosure.errors import InvalidRequest, UnknownLabel, UnknownSampler, UnsupportedField
from cynosure.resolving.respacing import respaced_steps

_NEEDS_CONDITION = (GuidanceMode.CLASSIFIER_FREE, GuidanceMode.COMBINED)
_USES_CLASSIFIER = (GuidanceMode.CLASSIFIER, GuidanceMode.COMBINED)


def resolve(request: GenerateRequest, card: ModelCard, *, seed: int) -> ResolvedRequest:
    """Fill in `card`'s defaults and refuse what its model can't do.

    Pure and quick: the same arguments give the same answer, and pictures are not looked into (`check_pictures` does).

    Args:
        request: a request for this model.
        card: what the model can do.
        seed: used where the request has none.

    Raises:
        InvalidRequest: naming the field, and what would be right.
    """
    _refuse_what_the_model_lacks(request, card)
    label = _label_index(request.class_label, card)
    has_condition = label is not None or request.prompt is not None
    mode = request.guidance_mode or (card.defaults.guidance_mode if has_condition else GuidanceMode.NONE)
    _check_mode(request, mode, label, card)
    _check_refinements(request, mode)
    guidance_scale, classifier_scale = _scales(request, mode, card)
    sampler = request.sampler or card.defaults.sampler
    if sampler not in card.samplers:
        raise UnknownSampler(sampler, card.samplers)
    if request.eta > 0 and sampler not in card.eta_samplers:
        raise UnsupportedField("eta", f"Sampler '{sampler}' takes no eta; those that do: {_list(card.eta_samplers)}.")
    if request.guidance_rule is GuidanceRule.CFG_PLUS_PLUS and sampler not in card.cfg_plus_plus_samplers:
        raise UnsupportedField(
            "guidance_rule",
            f"Sampler '{sampler}' can't follow cfg++; those that can: {_list(card.cfg_plus_plus_samplers)}.",
        )
    steps = _steps(request, sampler, card)
    _check_presence_of_pictures(request, card, steps)
    profile = request.profile or card.defaults.profile
    clip = profile in card.clipping_profiles if request.clip is None else request.clip
    if card.must_clip and mode in _USES_CLASSIFIER and not clip and request.dynamic_threshold is None:
        raise InvalidRequest(
            f"'{card.name}' starts from noise alone, where the classifier's term is multiplied by some 20,000: "
            "clip, or give a dynamic_threshold.",
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
        "width": card.width,
        "height": card.height,
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
                    field, f"'{card.name}' draws classes, not prompts. Give class_label, one of: {_list(card.labels)}."
                )
    for field, only in (("width", card.width), ("height", card.height)):
        asked = getattr(request, field)
        if asked is not None and asked != only:
            raise UnsupportedField(field, f"'{card.name}' draws {card.width}×{card.height} pictures only.")
    if request.profile is not None and request.profile not in card.profiles:
        raise UnsupportedField("profile", f"No profile '{request.profile}'; known: {_list(card.profiles)}.")
    if request.num_images > card.max_images:
        raise InvalidRequest(f"At most {card.max_images} pictures a job.", field="num_images")


def _label_index(label: int | str | None, card: ModelCard) -> int | None:
    if label is None:
        return None
    if not card.labels:
        raise UnsupportedField("class_label", f"'{card.name}' has no classes.")
    if isinstance(label, int):
        if 0 <= label < len(card.labels):
            return label
        raise UnknownLabel(label, card.labels)
    folded = {name.casefold(): index for index, name in enumerate(card.labels)}
    if label.strip().casefold() not in folded:
        raise UnknownLabel(label, card.labels)
    return folded[label.strip().casefold()]


def _steps(request: GenerateRequest, sampler: str, card: ModelCard) -> int:
    """The steps that will be run."""
    options = (
        ("timestep_spacing", card.spacings.get(sampler, ())),
        ("sigma_schedule", card.sigma_schedules.get(sampler, ())),
    )
    for field, known in options:
        asked = getattr(request, field)
        if asked is not None and asked not in known:
            raise UnsupportedField(field, f"Sampler '{sampler}' has no {field} '{asked}'; it has: {_list(known)}.")
    if request.timestep_respacing is not None:
        if sampler not in card.respaced_samplers:
            raise UnsupportedField(
                "timestep_respacing", f"Only {_list(card.respaced_samplers)} can take timestep_respacing here."
            )
        respaced = respaced_steps(request.timestep_respacing, card.max_steps)
        if request.steps not in (None, respaced):  # a resolved request names both, and agrees with itself
            raise InvalidRequest("Give steps or timestep_respacing, not both.", field="timestep_respacing")
        return respaced
    steps = request.steps or card.defaults.steps
    most = card.sampler_max_steps.get(sampler, card.max_steps)
    if steps > most:
        raise InvalidRequest(f"'{card.name}' takes {most} steps at most with sampler '{sampler}'.", field="steps")
    return steps


def _check_presence_of_pictures(request: GenerateRequest, card: ModelCard, steps: int) -> None:
    if card.needs_init_image and request.init_image is None:
        raise InvalidRequest(f"'{card.name}' enlarges a picture: give init_image.", field="init_image")
    for field in ("strength", "mask_image"):
        if getattr(request, field) is not None:
            if card.needs_init_image:
                raise UnsupportedField(field, f"'{card.name}' enlarges pictures; it doesn't redraw them.")
            if request.init_image is None:
                raise InvalidRequest(f"{field} needs an init_image.", field=field)
    if request.strength is not None and int(steps * request.strength) < 1:
        raise InvalidRequest(
            f"A strength of {request.strength:g} is less than one of {steps} steps; "
            f"at least {1 / steps:.3g} is needed.",
            field="strength",
        )


def _condition(request: GenerateRequest, card: ModelCard) -> ClassifierCondition | None:
    """The classifier's condition with labels by index."""
    asked = request.classifier_condition
    if asked is None:
        return None

    def indices(labels: Iterable[int | str]) -> tuple[int, ...]:
        return tuple(index for label in labels if (index := _label_index(label, card)) is not None)

    weights = {
        str(_label_index(int(name) if name.isdecimal() else name, card)): weight
        for name, weight in asked.labels.items()
    }
    if not weights and not asked.any_of and not asked.none_of:
        raise InvalidRequest("The condition is empty: give labels, any_of or not.", field="classifier_condition")
    if len(weights) + bool(asked.any_of) + bool(asked.none_of) > MAX_CONDITION_TERMS:
        raise InvalidRequest(f"At most {MAX_CONDITION_TERMS} terms.", field="classifier_condition")
    none_of = indices(asked.none_of)
    if len(set(none_of)) == len(card.labels):
        raise InvalidRequest("'not' leaves no label.", field="classifier_condition")
    return ClassifierCondition(labels=weights, any_of=indices(asked.any_of), none_of=none_of)


def _check_mode(request: GenerateRequest, mode: GuidanceMode, label: int | None, card: ModelCard) -> None:
    with_a_guide = request.guide_model is not None and mode is GuidanceMode.CLASSIFIER_FREE
    if mode not in card.guidance_modes and not with_a_guide:
        raise UnsupportedField(
            "guidance_mode", f"'{card.name}' can't do '{mode}'; its modes: {_list(card.guidance_modes)}."
        )
    if request.classifier_condition is not None and card.classifier_takes_prompt:
        raise UnsupportedField("classifier_condition", f"The classifier of '{card.name}' is asked by the prompt.")
    if request.classifier_condition is not None and mode not in _USES_CLASSIFIER:
        raise UnsupportedField("classifier_condition", f"guidance_mode '{mode}' has no classifier to steer.")
    prompts_suffice = mode is GuidanceMode.CLASSIFIER_FREE or card.classifier_takes_prompt
    has_prompt = request.prompt is not None and prompts_suffice
    steered = request.classifier_condition is not None and (
        mode is GuidanceMode.CLASSIFIER or (mode is GuidanceMode.COMBINED and request.prompt is not None)
    )
    if mode is not GuidanceMode.NONE and label is None and not has_prompt and not steered:
        if card.takes_prompt and not card.labels:
            raise InvalidRequest(f"guidance_mode '{mode}' needs a prompt to guide to.", field="prompt")
        raise InvalidRequest(
            f"guidance_mode '{mode}' needs a class_label to guide to, one of: {_list(card.labels)}.",
            field="class_label",
        )


def _check_refinements(request: GenerateRequest, mode: GuidanceMode) -> None:
    if request.guidance_interval_unit is IntervalUnit.FRACTION and request.guidance_interval[1] > 1:
        raise InvalidRequest(
            "As a fraction the interval lies in 0 to 1; for other counts give guidance_interval_unit.",
            field="guidance_interval",
        )
    for field, value in (("guide_model", request.guide_model), ("guidance_rule", request.guidance_rule)):
        if mode not in _NEEDS_CONDITION and value not in (None, GuidanceRule.STANDARD):
            raise UnsupportedField(field, f"{field} belongs to classifier-free guidance; the mode here is '{mode}'.")
    if mode is GuidanceMode.NONE and request.guidance_interval != (0.0, 1.0):
        raise UnsupportedField("guidance_interval", "guidance_mode 'none' guides nowhere; choose a guidance_mode.")
    if mode not in _NEEDS_CONDITION and request.guidance_rescale:
        raise UnsupportedField(
            "guidance_rescale", f"guidance_rescale belongs to classifier-free guidance; the mode here is '{mode}'."
        )


def _scales(request: GenerateRequest, mode: GuidanceMode, card: ModelCard) -> tuple[float | None, float | None]:
    if mode is GuidanceMode.NONE and request.guidance_scale is not None:
        raise UnsupportedField(
            "guidance_scale", "guidance_mode 'none' has no scale: leave it out, or choose a guidance_mode."
        )
    if mode is not GuidanceMode.COMBINED and request.classifier_scale is not None:
        raise UnsupportedField(
            "classifier_scale",
            "classifier_scale belongs to guidance_mode 'combined'; in 'classifier' the scale is guidance_scale.",
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
            raise UnsupportedField("classifier_base", "classifier_base belongs to guidance_mode 'classifier'.")
        return None
    if base is not None and base not in card.classifier_bases:
        raise UnsupportedField(
            "classifier_base", f"'{card.name}' has no {base} base; it has: {_list(card.classifier_bases)}."
        )
    return base or card.classifier_bases[0]
