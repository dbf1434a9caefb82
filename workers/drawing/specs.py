"""Requests as specs: the only module that knows both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cynosure.contract import (
    SIZE_CONDITIONING,
    ClassifierBase,
    ClassifierCondition,
    GuidanceMode,
    GuidanceRule,
    ModelCard,
    Priority,
    PromptSyntax,
    ResolvedRequest,
)
from cynosure.pictures import on_black, on_white, opened
from cynosure.resolving import cells_of
from models.spec import (
    Control,
    Guidance,
    ImagePrompt,
    IntervalUnit,
    LongPrompt,
    Lora,
    Pixels,
    SampleSpec,
    SizeConditioning,
    StepCache,
    Term,
)

DEFAULT_STRENGTH = 0.8  # diffusers' default
_BLANK = Pixels.of(np.zeros((1, 1, 3), np.uint8))
PRIORITY_LEVELS = {Priority.LOW: 0, Priority.NORMAL: 1, Priority.HIGH: 2}


def guidance_of(request: ResolvedRequest, card: ModelCard) -> Guidance:
    """The request's guidance in the engine's terms."""
    has_condition = request.class_label is not None or request.prompt is not None
    shared = Guidance(
        conditional=has_condition,
        terms=terms_of(request.classifier_condition, card),
        guide_pack=request.guide_model,
        plus_plus=request.guidance_rule is GuidanceRule.CFG_PLUS_PLUS,
        interval=request.guidance_interval,
        interval_unit=IntervalUnit(request.guidance_interval_unit),
        rescale=request.guidance_rescale,
    )
    match request.guidance_mode:
        case GuidanceMode.NONE:
            return Guidance(conditional=has_condition)
        case GuidanceMode.CLASSIFIER_FREE:
            return replace(shared, free_scale=request.guidance_scale)
        case GuidanceMode.CLASSIFIER:
            is_conditional = has_condition and request.classifier_base is ClassifierBase.CONDITIONAL
            return replace(shared, classifier_scale=request.guidance_scale or 0.0, conditional=is_conditional)
        case GuidanceMode.COMBINED:
            return replace(shared, free_scale=request.guidance_scale, classifier_scale=request.classifier_scale or 0.0)


def terms_of(condition: ClassifierCondition | None, card: ModelCard) -> tuple[Term, ...]:
    """A resolved classifier condition, whose labels are indices, as terms."""
    if condition is None:
        return ()
    terms = [Term(weight, (int(label),)) for label, weight in condition.labels.items()]
    if condition.any_of:
        terms.append(Term(1.0, tuple(int(label) for label in condition.any_of)))
    if condition.none_of:
        terms.append(Term(1.0, tuple(index for index in range(len(card.labels)) if index not in condition.none_of)))
    return tuple(terms)


def pixels_of(encoded: str | None, field: str) -> Pixels | None:
    """Decode a picture of the request: as RGB on white, or as grey on black if it is the mask."""
    if encoded is None:
        return None
    decode = on_black if field == "mask_image" else on_white
    pixels = np.array(decode(opened(encoded, field), field))
    return Pixels.of(pixels[..., None] if pixels.ndim == 2 else pixels)


def size_conditioning_of(request: ResolvedRequest) -> SizeConditioning:
    """What XL is told of sizes and crops."""
    given = {field: value for field in SIZE_CONDITIONING if (value := getattr(request, field)) is not None}
    return SizeConditioning(**given)


def strength_of(request: ResolvedRequest) -> float:
    """How far to depart from the request's picture; a masked area is drawn anew by default."""
    has_mask = request.mask_image is not None or "mask_image" in request.inputs
    return request.strength or (1.0 if has_mask else DEFAULT_STRENGTH)


def course_specs_of(request: ResolvedRequest, card: ModelCard) -> list[SampleSpec]:
    """A spec for each prompt of a detached request, with a blank picture for its own; their tables are equal."""
    by_prompt = {spec.prompt: spec for spec in specs_of("", request, card)}
    blank = _BLANK if "init_image" in request.inputs else None
    return [replace(spec, init_image=blank) for spec in by_prompt.values()]


def controls_of(request: ResolvedRequest) -> tuple[Control, ...]:
    """The request's controls; those of a detached one are left out."""
    return tuple(
        Control(
            model=each.model,
            image=image,
            scale=each.scale,
            start=each.start,
            end=each.end,
            preprocess=each.preprocess,
            digest=each.digest,
        )
        for number, each in enumerate(request.controls)
        if (image := pixels_of(each.image, f"controls.{number}.image")) is not None
    )


def image_prompts_of(request: ResolvedRequest) -> tuple[ImagePrompt, ...]:
    """The request's image prompts; those of a detached one are left out."""
    return tuple(
        ImagePrompt(image, each.scale)
        for number, each in enumerate(request.image_prompts)
        if (image := pixels_of(each.image, f"image_prompts.{number}.image")) is not None
    )


def specs_of(job_id: str, request: ResolvedRequest, card: ModelCard) -> list[SampleSpec]:
    """One spec per picture; controls and image prompts of a detached request are left out.

    Raises:
        InvalidRequest: a picture of the request can't be decoded.
    """
    controls, prompts = controls_of(request), image_prompts_of(request)
    start, mask = pixels_of(request.init_image, "init_image"), pixels_of(request.mask_image, "mask_image")
    return [
        SampleSpec(
            pack=cell.model,
            label=cell.class_label,
            prompt=cell.prompt,
            negative_prompt=cell.negative_prompt,
            long_prompt=LongPrompt(cell.long_prompt) if cell.long_prompt else None,
            weighted=cell.prompt_syntax is PromptSyntax.WEIGHTED,
            clip_skip=cell.clip_skip or 1,
            loras=tuple(Lora(lora.name, lora.scale, lora.digest) for lora in cell.loras),
            controls=controls,
            image_prompts=prompts,
            height=cell.height,
            width=cell.width,
            size_conditioning=size_conditioning_of(cell),
            guidance=guidance_of(cell, card),
            sampler=cell.sampler,
            steps=cell.steps,
            eta=cell.eta,
            spacing=cell.timestep_spacing,
            sigmas=cell.sigma_schedule,
            respacing=cell.timestep_respacing,
            cache=None if cell.cache is None else StepCache(cell.cache.every, cell.cache.until),
            profile=cell.profile,
            seed=cell.seed,
            image_index=index,
            clip=cell.clip,
            dynamic_threshold=cell.dynamic_threshold,
            init_image=start,
            strength=strength_of(cell),
            mask=mask,
            preview_every=cell.preview_every,
            telemetry=cell.telemetry,
            priority=PRIORITY_LEVELS[cell.priority],
            group=job_id,
        )
        for cell, index in cells_of(request)
    ]
