"""`resolve`: a request and a model's card make a request with everything decided, or a refusal that says why."""

from __future__ import annotations

import hashlib
import itertools
import json

from cynosure.contract import (
    DELIVERY_FIELDS,
    MAX_SWEEP_CELLS,
    ClassifierBase,
    GenerateRequest,
    GuidanceMode,
    ModelCard,
    ResolvedRequest,
    SweepAxes,
    SweepRequest,
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


def resolve_sweep(asked: SweepRequest, card: ModelCard, *, seed: int) -> ResolvedRequest:
    """A sweep as one request for all its pictures. Pure, like `resolve`; `seed` is used where no axis and no field is.

    Raises:
        InvalidRequest: naming the axis or field, and what would be right.
    """
    request = asked.request
    axes = {
        "class_labels": ("class_label", asked.class_labels),
        "prompts": ("prompt", asked.prompts),
        "guidance_scales": ("guidance_scale", asked.guidance_scales),
        "seeds": ("seed", asked.seeds),
    }
    for axis, (field, values) in axes.items():
        if values and getattr(request, field) is not None:
            raise InvalidRequest(f"The sweep goes over {axis}; leave {field} out of 'request'.", field=axis)
        if len(set(values)) < len(values):
            raise InvalidRequest(f"{axis} has a value twice.", field=axis)
    if asked.class_labels and asked.prompts:
        raise InvalidRequest("A sweep goes over class_labels or prompts, not both.", field="prompts")
    if request.num_images != 1:
        raise InvalidRequest("A sweep draws one picture a cell; use seeds for more.", field="num_images")
    swept = {field: values for field, values in axes.values() if values}
    count = 1
    for values in swept.values():
        count *= len(values)
    if not 1 < count <= MAX_SWEEP_CELLS:
        raise InvalidRequest(f"A sweep has 2 to {MAX_SWEEP_CELLS} pictures; this one has {count}.", field="seeds")
    cells = [
        resolve(request.model_copy(update=dict(zip(swept, values, strict=True))), card, seed=seed)
        for values in itertools.product(*swept.values())
    ]
    labels = tuple(dict.fromkeys(cell.class_label for cell in cells if cell.class_label is not None))
    if len(labels) < len(asked.class_labels):
        raise InvalidRequest("class_labels has a class twice, by name and by index.", field="class_labels")
    sweep = SweepAxes(
        class_labels=labels if asked.class_labels else (),
        prompts=asked.prompts,
        guidance_scales=asked.guidance_scales,
        seeds=asked.seeds,
    )
    return cells[0].model_copy(update={"sweep": sweep, "num_images": count})


def cells_of(request: ResolvedRequest) -> list[tuple[ResolvedRequest, int]]:
    """What each picture of a job shows: (the request for that picture alone, its image index there)."""
    if request.sweep is None:
        return [(request, index) for index in range(request.num_images)]
    sweep = request.sweep
    axes = {
        "class_label": sweep.class_labels,
        "prompt": sweep.prompts,
        "guidance_scale": sweep.guidance_scales,
        "seed": sweep.seeds,
    }
    swept = {field: values for field, values in axes.items() if values}
    return [
        (request.model_copy(update={"sweep": None, "num_images": 1, **dict(zip(swept, values, strict=True))}), 0)
        for values in itertools.product(*swept.values())
    ]


def result_key(request: ResolvedRequest, digest: str) -> str:
    """What a job's pictures depend on, as a SHA-256: the request but for its delivery, and the model's digest."""
    shown = request.model_dump(mode="json", exclude=set(DELIVERY_FIELDS))
    return hashlib.sha256(json.dumps([digest, shown], sort_keys=True).encode()).hexdigest()


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
