"""Prepares samples: checks their specs, encodes their inputs and computes their courses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from models.adapters import (
    AdapterFolders,
    Adapters,
    Controls,
    InvalidControls,
    InvalidImagePrompts,
    InvalidLoras,
    RowControl,
    RowExtras,
    RowImage,
)
from models.classifiers import Steering
from models.denoisers import Conditioning, Denoiser, latent_shape_of
from models.engine.sample import Course, Inputs
from models.lanes import first_call
from models.networks.tokens import Readings, remarks_on
from models.precision import Precision
from models.profiles import PROFILES, StrengthRule, fitted
from models.samplers import CFG_PLUS_PLUS_SAMPLERS, FLOW_PREDICTION, SAMPLERS, CoefficientTable, compile_table, shifted
from models.spec import Guidance, InvalidSpec, Row, SampleSpec, SizeConditioning, StepCache


class Sibling(Protocol):
    """Another pack on the device, to guide by."""

    @property
    def preparation(self) -> Preparation: ...


class Preparation:
    """Prepares the samples of one pack.

    `precision` is that of the denoiser; `siblings` are all packs on the device, for guidance by a second pack;
    `adapters` is where LoRAs and ControlNets are.

    Attributes:
        controls: the ControlNets, if there are any and the pack takes them.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        steering: Steering | None,
        scheduler_config: dict[str, Any],
        *,
        device: torch.device,
        precision: Precision,
        siblings: Mapping[str, Sibling],
        adapters: AdapterFolders,
    ) -> None:
        self.denoiser = denoiser
        self.steering = steering
        self.scheduler_config = scheduler_config
        self.device = device
        self.siblings = siblings
        self.controls: Controls | None = None
        base = denoiser.adapter_base
        if adapters.loras is not None and base is not None:
            denoiser.adapters = Adapters(base, adapters.loras, device)
        if adapters.controls is not None and base is not None and base.controls is not None:
            self.controls = Controls(base.controls, adapters.controls, device, precision, denoiser.encode)
        self._encoded: set[tuple[int, int, int]] = set()

    def check(self, spec: SampleSpec) -> None:
        """Check the spec's size and everything that depends on it, and its cache.

        Raises:
            InvalidSpec: the pack can't draw the size, its networks are not told of sizes, or it has no deep blocks.
        """
        denoiser, sizes = self.denoiser, self.denoiser.sizes
        height, width = spec.size(denoiser.picture_size)
        if not sizes.take(height, width):
            raise InvalidSpec(
                f"height {height} and width {width} can't be drawn: both must be multiples of {sizes.multiple_of} from "
                f"{sizes.min_side} to {sizes.max_side}, and their product at most {sizes.max_pixels}"
            )
        if spec.guidance.classifier_scale and (height, width) != denoiser.picture_size:
            raise InvalidSpec(f"the pack's classifier sees only height and width {denoiser.picture_size}")
        if spec.size_conditioning != SizeConditioning() and not denoiser.takes_size_conditioning:
            raise InvalidSpec("size_conditioning is for networks that are told of sizes, as XL is")
        if spec.cache is not None:
            self._check_cache(spec, spec.cache)

    def _check_cache(self, spec: SampleSpec, cache: StepCache) -> None:
        if not self.denoiser.has_deep_blocks:
            raise InvalidSpec("cache: the model's network has no deep blocks that could be left out, or is compiled")
        if cache.every < 2 or not 0 <= cache.until <= 1:
            raise InvalidSpec(f"cache is {cache}; every must be at least 2, and until a part from 0 to 1")
        if spec.controls:
            raise InvalidSpec("cache: the deep blocks also read what controls add; leave out one of the two")

    def scheduling(self, shape: tuple[int, int, int]) -> dict[str, Any]:
        """The scheduler's configuration for latents of `shape`."""
        _, high, wide = shape
        return shifted(self.scheduler_config, (high // self.denoiser.patch) * (wide // self.denoiser.patch))

    def table(self, spec: SampleSpec, *, begin: int | None = None) -> CoefficientTable:
        """The coefficient table of the spec's sampler, from the spec's first step."""
        profile = PROFILES[spec.profile]
        respacing = spec.respacing
        if spec.sampler == "ddpm" and self.denoiser.learns_variance and respacing is None:
            respacing = str(spec.steps)
        if profile.respaces and SAMPLERS[spec.sampler].respaces and respacing is None:
            respacing = str(spec.steps)
        which, overrides = profile.sampling(spec)
        return compile_table(
            spec.sampler,
            self.scheduling(latent_shape_of(self.denoiser, spec)),
            steps=spec.steps,
            eta=spec.eta,
            spacing=spec.spacing,
            sigmas=spec.sigmas,
            respacing=respacing,
            begin=self._begin(spec) if begin is None else begin,
            overrides={} if respacing else overrides,
            which=which,
            prediction_type=self.denoiser.prediction_type,
        )

    def _starts_from_picture(self, spec: SampleSpec) -> bool:
        return spec.init_image is not None and self.denoiser.low_res_size is None

    def _begin(self, spec: SampleSpec) -> int:
        """Number of steps skipped at the noisy end."""
        if not self._starts_from_picture(spec):
            return 0
        exact = spec.steps * spec.strength
        # Diffusers' pipelines for flow models round the steps that are skipped, all others those that are kept.
        is_flow = self.denoiser.prediction_type == FLOW_PREDICTION
        kept = spec.steps - int(max(spec.steps - exact, 0)) if is_flow else int(exact)
        if kept < 1:
            raise InvalidSpec(
                f"strength {spec.strength:g} of {spec.steps} steps is less than one step; "
                f"at least {1 / spec.steps:.3g} is needed"
            )
        return spec.steps - min(kept, spec.steps)

    def course(self, spec: SampleSpec, inputs: Inputs) -> Course:
        """Compute everything that determines the picture, from its first evaluation to its last.

        Raises:
            InvalidSpec, NotLinear, InvalidRespacing: the pack can't draw the spec.
        """
        table, profile = self.table(spec), PROFILES[spec.profile]
        start = None
        if inputs.init is not None and (inputs.mask is None or spec.strength < 1.0):
            start = table.level(0)
            if profile.strength is StrengthRule.SD and (begin := self._begin(spec)):
                start = self.table(spec, begin=begin - 1).level(0)
        guided = spec.guidance.active_range(table.timestep, table.noise_ratio)
        shape = latent_shape_of(self.denoiser, spec)
        return Course(
            spec=spec,
            profile=profile,
            table=table,
            guided=guided,
            inputs=inputs,
            shape=shape,
            row_cost=row_cost(self.denoiser, shape) * added_cost(self.denoiser, inputs.extras),
            start=start,
        )

    def encode_prompts(self, specs: Sequence[SampleSpec]) -> None:
        """Encode the prompts of specs together, so that `prepare` finds them encoded. Called where `prepare` is."""
        readable = []
        for spec in specs:
            with suppress(InvalidSpec):  # `prepare` says what is wrong
                self.readings(spec)
                readable.append(spec)
        self.denoiser.encode_prompts(readable)

    def prepare(self, spec: SampleSpec) -> Inputs:
        """Compute the conditioning of the sample's networks. Slow: must not be called on a thread that runs ticks.

        Raises:
            InvalidSpec: the spec can't be drawn by this pack.
        """
        if spec.init_image is None and not spec.controls:
            return self._inputs(spec)
        with first_call(self._encoded, latent_shape_of(self.denoiser, spec)):
            return self._inputs(spec)

    def _inputs(self, spec: SampleSpec) -> Inputs:
        guidance, readings = spec.guidance, self.readings(spec)
        conditional, unconditional = self.denoiser.conditioning(spec)
        extras = self._extras(spec, conditional)
        if guidance.guide_pack is not None:
            unconditional = self._guided_by(guidance.guide_pack, spec)
        elif not self.denoiser.has_null and any(
            Row.UNCONDITIONAL in guidance.rows(active=active) for active in (True, False)
        ):
            raise InvalidSpec("this model has no unconditional prediction; name a second one to guide by")
        if guidance.plus_plus and spec.sampler not in CFG_PLUS_PLUS_SAMPLERS:
            raise InvalidSpec(f"CFG++ is for {', '.join(CFG_PLUS_PLUS_SAMPLERS)}; the sampler here is '{spec.sampler}'")
        condition, remarks = None, (*remarks_on(readings), *self._remarks_on_controls(spec))
        if guidance.classifier_scale:
            if self.steering is None:
                raise InvalidSpec("the pack has no classifier to guide by")
            condition = self.steering.condition(spec)
            remarks = (*remarks, *self.steering.remarks(spec))
        return Inputs(
            extras=extras,
            conditional=conditional,
            unconditional=unconditional,
            condition=condition,
            readings=readings,
            remarks=tuple(dict.fromkeys(remarks)),
            **(self._start_and_mask(spec) if self._starts_from_picture(spec) else {}),
        )

    def _extras(self, spec: SampleSpec, conditional: Conditioning) -> RowExtras | None:
        """What its conditional rows have for themselves: LoRAs and ControlNets, loaded if they aren't yet; pictures."""
        adapted, controls, images = self._adapted(spec), self._controls(spec, conditional), self._images(spec)
        if not controls and not images:
            return adapted
        return RowExtras(adapters={} if adapted is None else adapted.adapters, controls=controls, images=images)

    def _images(self, spec: SampleSpec) -> tuple[RowImage, ...]:
        if not spec.image_prompts:
            return ()
        if self.denoiser.image_prompts is None:
            raise InvalidImagePrompts(
                "image_prompts: this model takes none; models of Stable Diffusion with an IP-Adapter in their folder "
                "do, if not compiled"
            )
        return self.denoiser.image_prompts.of(spec.image_prompts)

    def _controls(self, spec: SampleSpec, conditional: Conditioning) -> tuple[RowControl, ...]:
        if not spec.controls:
            return ()
        base = self.denoiser.adapter_base
        if base is None or base.controls is None:
            raise InvalidControls(
                "controls: this model takes none; models of Stable Diffusion and Flux do, if not compiled"
            )
        if self.controls is None:
            raise InvalidControls("controls: there is no folder of ControlNets here")
        size = spec.size(self.denoiser.picture_size)
        return self.controls.of(spec.controls, lambda picture: fitted(picture.array(), size, 3), conditional)

    def _remarks_on_controls(self, spec: SampleSpec) -> Iterator[str]:
        size = spec.size(self.denoiser.picture_size)
        for control in spec.controls:
            if control.image.shape[:2] != size:
                (high, wide), (height, width) = control.image.shape[:2], size
                yield (
                    f"controls: the picture for '{control.model}' has {wide}×{high} pixels and is fitted to "
                    f"{width}×{height}."
                )

    def _adapted(self, spec: SampleSpec) -> RowExtras | None:
        if not spec.loras:
            return None
        if self.denoiser.adapter_base is None:
            raise InvalidLoras(
                "loras: this model takes none; models of Stable Diffusion, Flux and prompted pixels do, if not compiled"
            )
        if self.denoiser.adapters is None:
            raise InvalidLoras("loras: there is no folder of LoRAs here")
        return self.denoiser.adapters.of(spec.loras)

    def readings(self, spec: SampleSpec) -> Readings:
        """How the spec's prompts are read; raises `InvalidSpec` if they can't be. Called where `prepare` is."""
        self.denoiser.prompt_options.check(spec)
        return self.denoiser.readings(spec)

    def _guided_by(self, name: str, spec: SampleSpec) -> Conditioning:
        """The conditioning of the rows of a second pack."""
        sibling = self.siblings.get(name)
        if sibling is None:
            raise InvalidSpec(f"no model '{name}' is loaded here to guide by; loaded: {', '.join(self.siblings)}")
        own, guide = self.denoiser, sibling.preparation
        height, width = spec.size(own.picture_size)
        sized = replace(spec, height=height, width=width, loras=(), controls=(), image_prompts=())
        guide.check(replace(sized, guidance=Guidance(), size_conditioning=SizeConditioning()))
        kinds = [(latent_shape_of(each, sized), each.prediction_type) for each in (own, guide.denoiser)]
        if kinds[0] != kinds[1]:
            raise InvalidSpec(f"model '{name}' can't guide this one: its latent shape or prediction type differs")
        return guide.denoiser.conditioning(sized)[0]

    def _start_and_mask(self, spec: SampleSpec) -> dict[str, Tensor]:
        assert spec.init_image is not None
        size = spec.size(self.denoiser.picture_size)
        start = fitted(spec.init_image.array(), size, self._channels) / 127.5 - 1
        encoded = {"init": self.denoiser.encode(start[None].to(self.device))[0]}
        if spec.mask is not None:
            mask = fitted(spec.mask.array(), size, 1) / 255
            encoded["mask"] = self.denoiser.encode_mask((mask > 0.5).float()[None].to(self.device))[0]
        return encoded

    @cached_property
    def _channels(self) -> int:
        """1 if the pictures are grey, else 3."""
        blank = torch.zeros(1, *self.denoiser.latent_shape, device=self.device)
        return 1 if self.denoiser.decode(blank).shape[1] == 1 else 3


def added_cost(denoiser: Denoiser, extras: RowExtras | None) -> float:
    """Factor on a row's cost: its low-rank products cost as their parameters relate to the network's."""
    return 1.0 if extras is None else 1.0 + extras.parameters / denoiser.num_parameters


def row_cost(denoiser: Denoiser, shape: tuple[int, int, int]) -> float:
    """Cost of a row of latents of `shape`, relative to one of the pack's own size."""
    return math.prod(shape) / math.prod(denoiser.latent_shape)
