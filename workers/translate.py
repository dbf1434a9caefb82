"""Between the contract and the science: the only place that knows both a request and a spec."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

from PIL import Image as PillowImage
from PIL import ImageDraw
from PIL.PngImagePlugin import PngInfo

from cynosure import __version__
from cynosure.contract import (
    DELIVERY_FIELDS,
    ClassifierBase,
    GuidanceMode,
    ModelCard,
    ModelDefaults,
    Priority,
    ResolvedRequest,
)
from cynosure.resolving import cells_of
from models.engine import Engine, Image
from models.loading import Pack
from models.samplers import SAMPLERS, max_steps
from models.spec import Guidance, SampleSpec

PRIORITY_LEVELS = {Priority.LOW: 0, Priority.NORMAL: 1, Priority.HIGH: 2}
SHEET_MARGIN, SHEET_HEADER, SHEET_MIN_CELL = 150, 20, 56


def guidance_of(request: ResolvedRequest) -> Guidance:
    """The request's guidance in the engine's terms."""
    interval, rescale = request.guidance_interval, request.guidance_rescale
    match request.guidance_mode:
        case GuidanceMode.NONE:
            return Guidance(conditional=request.class_label is not None)
        case GuidanceMode.CLASSIFIER_FREE:
            return Guidance(free_scale=request.guidance_scale, interval=interval, rescale=rescale)
        case GuidanceMode.CLASSIFIER:
            return Guidance(
                classifier_scale=request.guidance_scale or 0.0,
                conditional=request.classifier_base is ClassifierBase.CONDITIONAL,
                interval=interval,
                rescale=rescale,
            )
        case GuidanceMode.COMBINED:
            return Guidance(
                free_scale=request.guidance_scale,
                classifier_scale=request.classifier_scale or 0.0,
                interval=interval,
                rescale=rescale,
            )


def specs_of(job_id: str, request: ResolvedRequest) -> list[SampleSpec]:
    """One spec a picture."""
    return [
        SampleSpec(
            pack=cell.model,
            label=cell.class_label,
            guidance=guidance_of(cell),
            sampler=cell.sampler,
            steps=cell.steps,
            eta=cell.eta,
            seed=cell.seed,
            image_index=index,
            clip=cell.clip,
            dynamic_threshold=cell.dynamic_threshold,
            priority=PRIORITY_LEVELS[cell.priority],
            group=job_id,
        )
        for cell, index in cells_of(request)
    ]


def png_of(picture: Image, request: ResolvedRequest, index: int, card: ModelCard) -> bytes:
    """PNG bytes with the request inside; nothing in them depends on when, where or under which id they were made."""
    asked = request.model_dump(mode="json", exclude={*DELIVERY_FIELDS, "num_images"}, exclude_none=True)
    label = card.labels[request.class_label] if request.class_label is not None else ""
    scale = "" if request.guidance_scale is None else f"CFG scale: {request.guidance_scale:g}, "
    text = PngInfo()
    text.add_text(
        "parameters",
        f"{request.prompt or label}\nSteps: {request.steps}, Sampler: {request.sampler}, {scale}Seed: {request.seed}, "
        f"Size: {request.width}x{request.height}, Model hash: {card.digest[:10]}, Model: {request.model}",
    )
    text.add_text(
        "cynosure",
        json.dumps({"version": __version__, "digest": card.digest, "image_index": index, "request": asked}),
    )
    buffer = io.BytesIO()
    _pillow(picture).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


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
    modes = [GuidanceMode.NONE]
    bases: tuple[ClassifierBase, ...] = ()
    if pack.index.get("null_label") is not None:
        modes.append(GuidanceMode.CLASSIFIER_FREE)
    if pack.has_classifier:
        bases = (ClassifierBase.CONDITIONAL, ClassifierBase.UNCONDITIONAL)
        modes.append(GuidanceMode.CLASSIFIER)
        if GuidanceMode.CLASSIFIER_FREE in modes:
            modes.append(GuidanceMode.COMBINED)
    defaults = pack.defaults
    limits = {name: max_steps(name, pack.scheduler_config) for name in SAMPLERS}
    return ModelCard(
        name=pack.name,
        title=defaults.get("title", pack.name),
        family="unet2d",
        labels=pack.labels,
        guidance_modes=tuple(modes),
        classifier_bases=bases,
        samplers=tuple(SAMPLERS),
        eta_samplers=tuple(name for name, kind in SAMPLERS.items() if kind.takes_eta),
        profiles=("cynosure",),
        width=width,
        height=height,
        max_steps=pack.num_train_timesteps,
        sampler_max_steps={name: limit for name, limit in limits.items() if limit < pack.num_train_timesteps},
        defaults=ModelDefaults(
            guidance_mode=modes[1] if len(modes) > 1 else GuidanceMode.NONE,
            guidance_scale=defaults.get("guidance_scale", 3.0),
            classifier_scale=defaults.get("classifier_scale", 1.0) if pack.has_classifier else None,
            sampler=defaults.get("sampler", "ddim"),
            steps=defaults.get("steps", 50),
            profile="cynosure",
            clip=True,
        ),
        digest=pack.digest(),
        precision=str(calibration.denoiser.precision),
        reproducible=calibration.is_reproducible,
        num_parameters=engine.num_parameters(pack.name),
        license=defaults.get("license"),
    )
