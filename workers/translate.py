"""Between the contract and the science: the only place that knows both a request and a spec."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw

from cynosure.contract import (
    ClassifierBase,
    ClassifierCondition,
    GuidanceMode,
    GuidanceRule,
    ModelCard,
    ModelDefaults,
    Priority,
    ResolvedRequest,
)
from cynosure.metadata import png_bytes
from cynosure.pictures import decoded, opened
from cynosure.resolving import cells_of
from models.engine import Engine, Image
from models.loading import Pack
from models.profiles import PROFILES
from models.samplers import CFG_PLUS_PLUS_SAMPLERS, SAMPLERS, max_steps, options
from models.spec import Guidance, IntervalUnit, Pixels, SampleSpec, Term

DEFAULT_STRENGTH = 0.8  # as diffusers has it
MUST_CLIP_BELOW = 1e-6  # last ᾱ of a schedule that ends in noise alone: a linear one ends at 4e-5
PRIORITY_LEVELS = {Priority.LOW: 0, Priority.NORMAL: 1, Priority.HIGH: 2}
MAX_PREVIEW_SIDE = 256
SHEET_MARGIN, SHEET_HEADER, SHEET_MIN_CELL = 150, 20, 56


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
    """A classifier condition (resolved: labels by index) as terms."""
    if condition is None:
        return ()
    terms = [Term(weight, (int(label),)) for label, weight in condition.labels.items()]
    if condition.any_of:
        terms.append(Term(1.0, tuple(int(label) for label in condition.any_of)))
    if condition.none_of:
        terms.append(Term(1.0, tuple(index for index in range(len(card.labels)) if index not in condition.none_of)))
    return tuple(terms)


def pixels_of(encoded: str | None, field: str) -> Pixels | None:
    """A picture of the request, decoded; transparent parts are white."""
    if encoded is None:
        return None
    picture = opened(encoded, field)
    background = PillowImage.new("RGBA", picture.size, "white")
    coloured = PillowImage.alpha_composite(background, decoded(picture, "RGBA", field)).convert("RGB")
    return Pixels.of(np.array(coloured))


def specs_of(job_id: str, request: ResolvedRequest, card: ModelCard) -> list[SampleSpec]:
    """One spec a picture.

    Raises:
        InvalidRequest: a picture of the request can't be decoded.
    """
    start, mask = pixels_of(request.init_image, "init_image"), pixels_of(request.mask_image, "mask_image")
    return [
        SampleSpec(
            pack=cell.model,
            label=cell.class_label,
            prompt=cell.prompt,
            negative_prompt=cell.negative_prompt,
            guidance=guidance_of(cell, card),
            sampler=cell.sampler,
            steps=cell.steps,
            eta=cell.eta,
            spacing=cell.timestep_spacing,
            sigmas=cell.sigma_schedule,
            respacing=cell.timestep_respacing,
            profile=cell.profile,
            seed=cell.seed,
            image_index=index,
            clip=cell.clip,
            dynamic_threshold=cell.dynamic_threshold,
            init_image=start,
            strength=DEFAULT_STRENGTH if cell.strength is None and mask is None else (cell.strength or 1.0),
            mask=mask,
            preview_every=cell.preview_every,
            telemetry=cell.telemetry,
            priority=PRIORITY_LEVELS[cell.priority],
            group=job_id,
        )
        for cell, index in cells_of(request)
    ]


def png_of(
    picture: Image, request: ResolvedRequest, index: int, card: ModelCard, guide: ModelCard | None = None
) -> bytes:
    """PNG bytes with the request inside; nothing in them depends on when, where or under which id they were made."""
    return png_bytes(_pillow(picture), request, index, card, guide)


def preview_of(picture: Image) -> str:
    """Base64 PNG, made smaller where it is larger than a preview should be."""
    small = _pillow(picture)
    small.thumbnail((MAX_PREVIEW_SIDE, MAX_PREVIEW_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _pillow(picture: Image) -> PillowImage.Image:
    return PillowImage.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)


def sheet_of(pictures: Sequence[Image], request: ResolvedRequest, card: ModelCard) -> bytes | None:
    """PNG bytes of a sweep's contact sheet: a row for each label or prompt and seed, a column for each scale."""
    if request.sweep is None:
        return None
    scales = request.sweep.guidance_scales or (request.guidance_scale,)
    seeds = request.sweep.seeds or (request.seed,)
    subjects = [card.labels[label] for label in request.sweep.class_labels] or list(request.sweep.prompts) or [""]
    height, width = pictures[0].shape[:2]
    zoom = max(1, -(-SHEET_MIN_CELL // min(height, width)))
    cell_width, cell_height = width * zoom + 4, height * zoom + 4
    sheet = PillowImage.new(
        "RGB",
        (SHEET_MARGIN + cell_width * len(scales), SHEET_HEADER + cell_height * len(subjects) * len(seeds)),
        "white",
    )
    pen = ImageDraw.Draw(sheet)
    for column, scale in enumerate(scales):
        text = "" if scale is None else f"{scale:g}"
        pen.text((SHEET_MARGIN + cell_width * column + 4, 4), text, fill="black")
    for index, picture in enumerate(pictures):
        (subject, scale_index), seed_index = divmod(index // len(seeds), len(scales)), index % len(seeds)
        row = subject * len(seeds) + seed_index
        top = SHEET_HEADER + cell_height * row
        if scale_index == 0:
            pen.text((4, top + 4), f"{subjects[subject][:22]}\nseed {seeds[seed_index]}", fill="black")
        enlarged = _pillow(picture).convert("RGB").resize((width * zoom, height * zoom), PillowImage.Resampling.NEAREST)
        sheet.paste(enlarged, (SHEET_MARGIN + cell_width * scale_index, top))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def card_of(pack: Pack, engine: Engine) -> ModelCard:
    """What the gateway may promise of this pack."""
    height, width = engine.picture_size(pack.name)
    calibration = engine.calibration(pack.name)
    denoiser = engine.denoiser(pack.name)
    modes = [GuidanceMode.NONE]
    bases: tuple[ClassifierBase, ...] = ()
    if denoiser.has_null and (denoiser.takes_prompt or denoiser.has_classes):
        modes.append(GuidanceMode.CLASSIFIER_FREE)
    if pack.has_classifier:
        conditional, unconditional = (ClassifierBase.CONDITIONAL,), (ClassifierBase.UNCONDITIONAL,)
        is_conditional = denoiser.has_classes or denoiser.takes_prompt
        bases = conditional * is_conditional + unconditional * denoiser.has_null
        modes.append(GuidanceMode.CLASSIFIER)
        if GuidanceMode.CLASSIFIER_FREE in modes:
            modes.append(GuidanceMode.COMBINED)
    defaults = pack.defaults
    limits = {name: max_steps(name, pack.scheduler_config, denoiser.prediction_type) for name in SAMPLERS}
    samplers = tuple(name for name, limit in limits.items() if limit)
    profile = str(defaults.get("profile", "cynosure"))
    is_pixel_model = denoiser.latent_shape[1:] == engine.picture_size(pack.name) or "vae" not in pack.index
    clipping = tuple(name for name, one in PROFILES.items() if one.clips and is_pixel_model)
    return ModelCard(
        name=pack.name,
        title=defaults.get("title", pack.name),
        family=pack.family,
        labels=pack.labels,
        guidance_modes=tuple(modes),
        classifier_takes_prompt=engine.steers_by_prompt(pack.name),
        classifier_bases=bases,
        samplers=samplers,
        eta_samplers=tuple(name for name in samplers if SAMPLERS[name].takes_eta),
        cfg_plus_plus_samplers=tuple(name for name in samplers if name in CFG_PLUS_PLUS_SAMPLERS),
        spacings={name: options(name)[0] for name in samplers if options(name)[0]},
        sigma_schedules={name: options(name)[1] for name in samplers if options(name)[1]},
        profiles=tuple(PROFILES),
        clipping_profiles=clipping,
        must_clip=pack.has_classifier and engine.last_alpha_bar(pack.name) < MUST_CLIP_BELOW,
        takes_prompt=denoiser.takes_prompt,
        needs_init_image=denoiser.low_res_size is not None,
        width=width,
        height=height,
        max_steps=pack.num_train_timesteps,
        sampler_max_steps={name: limit for name, limit in limits.items() if 0 < limit < pack.num_train_timesteps},
        defaults=ModelDefaults(
            guidance_mode=modes[1] if len(modes) > 1 else GuidanceMode.NONE,
            guidance_scale=defaults.get("guidance_scale", 3.0),
            classifier_scale=defaults.get("classifier_scale", 1.0) if pack.has_classifier else None,
            sampler=defaults.get("sampler", "ddim" if "ddim" in samplers else "flow_euler"),
            steps=defaults.get("steps", 50),
            profile=profile,
            clip=profile in clipping,
        ),
        digest=pack.digest(),
        precision=str(calibration.denoiser.precision),
        reproducible=calibration.is_reproducible,
        num_parameters=engine.num_parameters(pack.name),
        license=defaults.get("license"),
    )
