"""Between the contract and the science: the only place that knows both a request and a spec."""

from __future__ import annotations

import io
import json

from PIL import Image as PillowImage
from PIL.PngImagePlugin import PngInfo

from cynosure import __version__
from cynosure.contract import (
    ClassifierBase,
    GuidanceMode,
    ModelCard,
    ModelDefaults,
    Priority,
    ResolvedRequest,
)
from models.engine import Engine, Image
from models.loading import Pack
from models.samplers import SAMPLERS, max_steps
from models.spec import Guidance, SampleSpec

PRIORITY_LEVELS = {Priority.LOW: 0, Priority.NORMAL: 1, Priority.HIGH: 2}
_DELIVERY_FIELDS = {"num_images", "use_cache", "preview_every", "priority", "webhook_url"}
"""Fields that say how a picture is delivered, not what it shows: kept out of its bytes."""


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
    guidance = guidance_of(request)
    return [
        SampleSpec(
            pack=request.model,
            label=request.class_label,
            guidance=guidance,
            sampler=request.sampler,
            steps=request.steps,
            eta=request.eta,
            seed=request.seed,
            image_index=index,
            clip=request.clip,
            dynamic_threshold=request.dynamic_threshold,
            priority=PRIORITY_LEVELS[request.priority],
            group=job_id,
        )
        for index in range(request.num_images)
    ]


def png_of(picture: Image, request: ResolvedRequest, index: int, card: ModelCard) -> bytes:
    """PNG bytes with the request inside; nothing in them depends on when, where or under which id they were made."""
    grey = picture.shape[-1] == 1
    image = PillowImage.fromarray(picture[..., 0] if grey else picture)
    asked = request.model_dump(mode="json", exclude=_DELIVERY_FIELDS, exclude_none=True)
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
    image.save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def card_of(pack: Pack, engine: Engine) -> ModelCard:
    """What the gateway may promise of this pack."""
    height, width = engine.picture_size(pack.name)
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
        num_parameters=engine.num_parameters(pack.name),
        license=defaults.get("license"),
    )
