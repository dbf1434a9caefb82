"""The model card of a loaded pack, by which the gateway checks requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cynosure.contract import (
    ClassifierBase,
    ComponentMemory,
    ControlOnCard,
    GuidanceMode,
    IpAdapterOnCard,
    LongPrompt,
    ModelCard,
    ModelDefaults,
    ModelMemory,
    PromptSyntax,
    Sizes,
)
from models.adapters import Controls, ImagePrompts
from models.calibration import Calibration
from models.denoisers import Denoiser
from models.engine import LoadedPack
from models.loading import opening
from models.memory import weights_of
from models.pack import InvalidPack, Pack
from models.profiles import PROFILES
from models.samplers import (
    CFG_PLUS_PLUS_SAMPLERS,
    FLOW_PREDICTION,
    PROBED_STEPS,
    SAMPLERS,
    NotLinear,
    folder_limits,
    folder_sampler,
    max_steps,
    options,
)
from models.spec import PromptOptions, Steps

MUST_CLIP_BELOW = 1e-6  # bound on the last ᾱ of a schedule that ends in pure noise; a linear one ends at 4e-5

DISTILLED_STEPS = {"lcm": 4, "tcd": 4}
"""Default steps with the schedulers of distilled models; 4 is that of diffusers' `LatentConsistencyModelPipeline`."""


def card_of(loaded: LoadedPack) -> ModelCard:
    """The card of this pack: all that the gateway may promise of it.

    Raises:
        InvalidPack: its defaults are not what a card takes.
    """
    with opening(loaded.pack):
        card = _card(loaded)
    _check_defaults(loaded.pack, card)
    return card


def _check_defaults(pack: Pack, card: ModelCard) -> None:
    defaults = card.defaults
    known = (
        ("sampler", defaults.sampler in card.samplers, f"one of {', '.join(card.samplers)}"),
        ("profile", defaults.profile in card.profiles, f"one of {', '.join(card.profiles)}"),
        ("steps", 1 <= defaults.steps <= card.max_steps, f"a number from 1 to {card.max_steps}"),
    )
    for name, is_right, right in known:
        if not is_right:
            raise InvalidPack(f"{pack.folder / 'model_index.json'}: {name} in cynosure must be {right}")


def _card(loaded: LoadedPack) -> ModelCard:
    pack, denoiser, calibration = loaded.pack, loaded.denoiser, loaded.calibration
    modes, bases = _modes_and_bases(loaded)
    defaults = pack.defaults
    limits = {name: max_steps(name, loaded.scheduler_config, denoiser.prediction_type) for name in SAMPLERS}
    samplers = tuple(name for name, limit in limits.items() if limit)
    profile = str(defaults.get("profile", "cynosure"))
    sampler = defaults.get("sampler", _default_sampler(pack, samplers))
    is_pixel_model = denoiser.latent_shape[1:] == denoiser.picture_size or "vae" not in pack.index
    clipping = tuple(name for name, candidate in PROFILES.items() if candidate.clips and is_pixel_model)
    return ModelCard(
        name=pack.name,
        title=defaults.get("title", pack.name),
        family=pack.family,
        labels=pack.labels,
        guidance_modes=modes,
        classifier_takes_prompt=loaded.classifier_takes_prompt,
        classifier_bases=bases,
        samplers=samplers,
        eta_samplers=tuple(name for name in samplers if SAMPLERS[name].takes_eta),
        respaced_samplers=tuple(name for name in samplers if SAMPLERS[name].respaces),
        cfg_plus_plus_samplers=tuple(name for name in samplers if name in CFG_PLUS_PLUS_SAMPLERS),
        spacings={name: options(name)[0] for name in samplers if options(name)[0]},
        sigma_schedules={name: options(name)[1] for name in samplers if options(name)[1]},
        **_profiles(pack, samplers),
        clipping_profiles=clipping,
        must_clip=pack.has_classifier and loaded.last_alpha_bar < MUST_CLIP_BELOW,
        takes_prompt=denoiser.takes_prompt,
        **_prompt_options(denoiser.prompt_options),
        takes_loras=denoiser.adapters is not None,
        **_controls(loaded.runner.preparation.controls),
        ip_adapter=_ip_adapter(denoiser.image_prompts),
        takes_cache=denoiser.has_deep_blocks,
        needs_init_image=denoiser.low_res_size is not None,
        sizes=_sizes(denoiser),
        takes_size_conditioning=denoiser.takes_size_conditioning,
        max_steps=pack.num_train_timesteps,
        sampler_max_steps={name: limit for name, limit in limits.items() if 0 < limit < pack.num_train_timesteps},
        certain_steps={
            name: limits[name] if _goes_to_its_limit(name, profile, denoiser.prediction_type) else PROBED_STEPS[-1]
            for name in samplers
        },
        defaults=ModelDefaults(
            guidance_mode=modes[1] if len(modes) > 1 else GuidanceMode.NONE,
            guidance_scale=defaults.get("guidance_scale", denoiser.default_scale),
            classifier_scale=defaults.get("classifier_scale", 1.0) if pack.has_classifier else None,
            sampler=sampler,
            steps=defaults.get("steps", DISTILLED_STEPS.get(sampler, 50)),
            profile=profile,
            clip=profile in clipping,
        ),
        digest=pack.digest(),
        precision=str(calibration.denoiser.precision),
        reproducible=calibration.is_reproducible,
        num_parameters=denoiser.num_parameters,
        memory=_memory_of(loaded),
        license=defaults.get("license"),
    )


def _memory_of(loaded: LoadedPack) -> ModelMemory:
    calibration = loaded.calibration
    classifier = (calibration.classifier or calibration.denoiser).precision
    weights = weights_of(loaded.pack, calibration.denoiser.precision, classifier)
    components = {role: ComponentMemory(parameters=each.parameters, bytes=each.bytes) for role, each in weights.items()}
    return with_pictures(ModelMemory(weights=components, total_bytes=0), calibration, loaded.denoiser)


def with_pictures(memory: ModelMemory, calibration: Calibration, denoiser: Denoiser) -> ModelMemory:
    """The memory of a pack with what its pictures need, as far as that is measured."""
    height, width = denoiser.picture_size
    batch, largest = calibration.batch_bytes, calibration.picture_bytes(denoiser.sizes.max_pixels / (height * width))
    weights = sum(each.bytes for each in memory.weights.values())
    return memory.model_copy(
        update={
            "batch_bytes": batch or None,
            "largest_picture_bytes": largest or None,
            "kept_row_bytes": calibration.denoiser.kept_bytes or None,
            "total_bytes": weights + max(batch, largest),
        }
    )


def _sizes(denoiser: Denoiser) -> Sizes:
    height, width = denoiser.picture_size
    sizes = denoiser.sizes
    return Sizes(
        default=(width, height),
        multiple_of=sizes.multiple_of,
        min_side=sizes.min_side,
        max_side=sizes.max_side,
        max_pixels=sizes.max_pixels,
        suggested=tuple((wide, high) for high, wide in sizes.suggested),
    )


def _default_sampler(pack: Pack, samplers: Sequence[str]) -> str:
    own = folder_sampler(pack.scheduler_config)
    if own in DISTILLED_STEPS and own in samplers:
        return own
    return "ddim" if "ddim" in samplers else "flow_euler"


def _controls(controls: Controls | None) -> dict[str, Any]:
    """The ControlNets that a request may name."""
    if controls is None:
        return {}
    listed = tuple(
        ControlOnCard(name=one.name, digest=one.digest, family=one.family, fault=one.fault) for one in controls.listed
    )
    return {"takes_controls": True, "controls": listed}


def _ip_adapter(prompts: ImagePrompts | None) -> IpAdapterOnCard | None:
    return None if prompts is None else IpAdapterOnCard(kind=prompts.kind, digest=prompts.digest)


def _prompt_options(options: PromptOptions) -> dict[str, Any]:
    """What a request may choose about the reading of its prompts."""
    return {
        "long_prompts": tuple(LongPrompt(one) for one in options.long_prompts),
        "prompt_syntaxes": tuple(PromptSyntax) if options.takes_weights else (),
        "max_clip_skip": options.most_clip_skip,
    }


def _profiles(pack: Pack, samplers: Sequence[str]) -> dict[str, Any]:
    """The profiles of a pack, and what those that follow its folder's scheduler do where a request says nothing."""
    own = folder_sampler(pack.scheduler_config)
    following = [name for name, profile in PROFILES.items() if profile.steps is Steps.FOLDER]
    if own not in samplers:
        return {"profiles": tuple(name for name in PROFILES if name not in following)}
    clipped = tuple(sampler for sampler in samplers if _is_limited(sampler, pack))
    return {
        "profiles": tuple(PROFILES),
        "profile_samplers": dict.fromkeys(following, own),
        "clipped_samplers": dict.fromkeys(following, clipped),
    }


def _is_limited(sampler: str, pack: Pack) -> bool:
    try:
        return folder_limits(sampler, pack.scheduler_config)
    except NotLinear:  # limited in a way that is refused
        return False


def _goes_to_its_limit(sampler: str, profile: str, prediction_type: str) -> bool:
    """Whether the sampler, without options, takes every number of steps up to its `max_steps`.

    A profile may space its steps otherwise; and on straight paths more than a few hundred steps repeat a noise level.
    """
    return (
        prediction_type != FLOW_PREDICTION
        and PROFILES[profile].steps is Steps.EXACT
        and not PROFILES[profile].samplers.get(sampler)
    )


def _modes_and_bases(loaded: LoadedPack) -> tuple[tuple[GuidanceMode, ...], tuple[ClassifierBase, ...]]:
    """The guidance modes of a pack, and the predictions that its classifier may steer."""
    denoiser = loaded.denoiser
    is_conditional = denoiser.has_classes or denoiser.takes_prompt
    modes, bases = [GuidanceMode.NONE], []
    if denoiser.has_null and is_conditional:
        modes.append(GuidanceMode.CLASSIFIER_FREE)
    if loaded.pack.has_classifier:
        modes.append(GuidanceMode.CLASSIFIER)
        if GuidanceMode.CLASSIFIER_FREE in modes:
            modes.append(GuidanceMode.COMBINED)
        if is_conditional:
            bases.append(ClassifierBase.CONDITIONAL)
        if denoiser.has_null:
            bases.append(ClassifierBase.UNCONDITIONAL)
    return tuple(modes), tuple(bases)
