"""`resolve`: a request and a model's card make a request with everything decided, or a refusal that says why."""

from __future__ import annotations

from cynosure.contract import (
    ClassifierBase,
    GenerateRequest,
    GuidanceMode,
    ModelCard,
    ResolvedRequest,
)
from cynosure.errors import InvalidRequest, UnknownLabel, UnknownSampler, UnsupportedField

_NEEDS_CONDITION = (GuidanceMode.CLASSIFIER_FREE, GuidanceMode.COMBINED)


def resolve(request: GenerateRequest, card: ModelCard, *, seed: int) -> ResolvedRequest:
    """Fill in `card`'s defaults and refuse what its model can't do. Pure: the same arguments give the same answer.

    Args:
        request: a request for this model.
        card: what the model can do.
        seed: used where the request has none.

    Raises:
        InvalidRequest: naming the field, and what would be right.
    """
    _refuse_what_nobody_serves(request)
    _refuse_what_the_model_lacks(request, card)
    label = _label_index(request.class_label, card)
    mode = request.guidance_mode or (card.defaults.guidance_mode if label is not None else GuidanceMode.NONE)
    _check_mode(mode, label, card)
    _check_refinements(request, mode)
    guidance_scale, classifier_scale = _scales(request, mode, card)
    sampler = request.sampler or card.defaults.sampler
    if sampler not in card.samplers:
        raise UnknownSampler(sampler, card.samplers)
    if request.eta > 0 and sampler not in card.eta_samplers:
        raise UnsupportedField("eta", f"Sampler '{sampler}' takes no eta; those that do: {_list(card.eta_samplers)}.")
    steps = request.steps or card.defaults.steps
    most = card.sampler_max_steps.get(sampler, card.max_steps)
    if steps > most:
        raise InvalidRequest(f"'{card.name}' takes {most} steps at most with sampler '{sampler}'.", field="steps")
    return ResolvedRequest.model_validate(
        request.model_dump()
        | {
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
            "profile": request.profile or card.defaults.profile,
            "clip": card.defaults.clip if request.clip is None else request.clip,
        }
    )


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"


def _refuse_what_nobody_serves(request: GenerateRequest) -> None:
    if request.webhook_url is not None:
        raise UnsupportedField("webhook_url", "Webhooks are not delivered by this version; poll the job's status.")
    if request.preview_every:
        raise UnsupportedField("preview_every", "Previews are not sent by this version; leave it out or at 0.")


def _refuse_what_the_model_lacks(request: GenerateRequest, card: ModelCard) -> None:
    if not card.takes_prompt:
        for field in ("prompt", "negative_prompt"):
            if getattr(request, field) is not None:
                raise UnsupportedField(
                    field, f"'{card.name}' draws classes, not prompts. Give class_label, one of: {_list(card.labels)}."
                )
    for field in ("init_image", "strength", "mask_image"):
        if getattr(request, field) is not None:
            raise UnsupportedField(field, f"'{card.name}' starts from noise alone: no image-to-image, no inpainting.")
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


def _check_mode(mode: GuidanceMode, label: int | None, card: ModelCard) -> None:
    if mode not in card.guidance_modes:
        raise UnsupportedField(
            "guidance_mode", f"'{card.name}' can't do '{mode}'; its modes: {_list(card.guidance_modes)}."
        )
    if mode is not GuidanceMode.NONE and label is None:
        raise InvalidRequest(
            f"guidance_mode '{mode}' needs a class_label to guide to, one of: {_list(card.labels)}.",
            field="class_label",
        )


def _check_refinements(request: GenerateRequest, mode: GuidanceMode) -> None:
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
