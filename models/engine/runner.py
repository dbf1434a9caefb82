"""The networks of one pack on one device: start samples, advance them, and decode them to pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.calibration.probes import Network, only, stacked
from models.calibration.result import Calibration, NetworkCalibration
from models.classifiers import Steering
from models.denoisers import Conditioning, Denoiser
from models.engine.evaluation import Evaluation, Evaluator, Work, evaluated, gather, work_of
from models.engine.sample import Course, Image, Inputs, Sample
from models.guidance import Guided, Predictions, combine
from models.lanes import CallRunner, Lanes
from models.networks.tokens import Readings, remarks_on
from models.noise import draw_noise
from models.profiles import PROFILES, StrengthRule, fitted, to_uint8
from models.samplers import CFG_PLUS_PLUS_SAMPLERS, SAMPLERS, CoefficientTable, advance, compile_table
from models.samplers.table import NUM_COLUMNS
from models.spec import InvalidSpec, Row, SampleSpec

CUDA_WARM_UPS = 3  # graphs are recorded at the second call


class Runner:
    """Networks of one pack on one device.

    `siblings` are the runners of all packs on the device, for guidance by a second pack.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        steering: Steering | None,
        calibration: Calibration,
        scheduler_config: dict[str, Any],
        *,
        device: torch.device,
        siblings: Mapping[str, Runner],
    ) -> None:
        self.denoiser = denoiser
        self.steering = steering
        self.calibration = calibration
        self.scheduler_config = scheduler_config
        self.device = device
        self.siblings = siblings
        self.lanes = Lanes(calibration.layout)
        self.max_batch = calibration.denoiser.sizes[-1]
        self.evaluator = Evaluator(denoiser)

    def warm_up(self) -> None:
        """Create kernels and record graphs before the first request, and not on two lanes at once.

        When oneDNN creates kernels on two threads at once, some of them round differently.
        """
        denoiser, classifier = self.calibration.denoiser, self.calibration.classifier
        if self._is_cold(denoiser):
            self._warm(only(self.denoiser.forward), denoiser.sizes, self.evaluator.example)
            latent = torch.zeros(1, *self.denoiser.latent_shape, device=self.device)
            self.lanes.run([lambda: self.denoiser.encode(self.denoiser.decode(latent))])
        if self.steering is not None and classifier is not None and self._is_cold(classifier):
            self._warm(self.steering.gradient, classifier.sizes, self.steering.examples()[0])

    def _is_cold(self, network: NetworkCalibration) -> bool:
        """Whether its first call takes much longer than later ones, or could happen on two lanes at once."""
        return self.device.type != "cpu" or network.precision.compiled or self.lanes.count > 1

    def _warm(self, network: Network, sizes: Sequence[int], conditioning: Conditioning) -> None:
        for size in sizes:
            x = torch.zeros(size, *self.denoiser.latent_shape, device=self.device)
            batch = (x, x.new_zeros(size), stacked([conditioning] * size, self.device))
            for _ in range(CUDA_WARM_UPS if self.device.type == "cuda" else 1):
                self.lanes.run([partial(network, *batch)])

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
            self.scheduler_config,
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
        kept = int(spec.steps * spec.strength)
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
        return Course(spec=spec, profile=profile, table=table, guided=guided, inputs=inputs, start=start)

    def prepare(self, spec: SampleSpec) -> Inputs:
        """Compute the conditioning of the sample's networks. Slow: must not be called on a thread that runs ticks.

        Raises:
            InvalidSpec: the spec can't be drawn by this pack.
        """
        guidance, readings = spec.guidance, self.readings(spec)
        conditional, unconditional = self.denoiser.conditioning(spec)
        if guidance.guide_pack is not None:
            unconditional = self._guide(guidance.guide_pack).denoiser.conditioning(spec)[0]
        elif not self.denoiser.has_null and any(
            Row.UNCONDITIONAL in guidance.rows(active=active) for active in (True, False)
        ):
            raise InvalidSpec("this model has no unconditional prediction; name a second one to guide by")
        if guidance.plus_plus and spec.sampler not in CFG_PLUS_PLUS_SAMPLERS:
            raise InvalidSpec(f"CFG++ is for {', '.join(CFG_PLUS_PLUS_SAMPLERS)}; the sampler here is '{spec.sampler}'")
        condition, remarks = None, remarks_on(readings)
        if guidance.classifier_scale:
            if self.steering is None:
                raise InvalidSpec("the pack has no classifier to guide by")
            condition = self.steering.condition(spec)
            remarks = (*remarks, *self.steering.remarks(spec))
        return Inputs(
            conditional=conditional,
            unconditional=unconditional,
            condition=condition,
            readings=readings,
            remarks=tuple(dict.fromkeys(remarks)),
            **(self._start_and_mask(spec) if self._starts_from_picture(spec) else {}),
        )

    def readings(self, spec: SampleSpec) -> Readings:
        """How the spec's prompts are read; raises `InvalidSpec` if they can't be. Called where `prepare` is."""
        self.denoiser.prompt_options.check(spec)
        return self.denoiser.readings(spec)

    def _guide(self, name: str) -> Runner:
        guide = self.siblings.get(name)
        if guide is None:
            raise InvalidSpec(f"no model '{name}' is loaded here to guide by; loaded: {', '.join(self.siblings)}")
        own, other = self.denoiser, guide.denoiser
        if (own.latent_shape, own.prediction_type) != (other.latent_shape, other.prediction_type):
            raise InvalidSpec(f"model '{name}' can't guide this one: its latent shape or prediction type differs")
        return guide

    def _start_and_mask(self, spec: SampleSpec) -> dict[str, Tensor]:
        assert spec.init_image is not None
        blank = torch.zeros(1, *self.denoiser.latent_shape, device=self.device)
        channels = 1 if self.denoiser.decode(blank).shape[1] == 1 else 3
        start = fitted(spec.init_image.array(), self.denoiser.picture_size, channels) / 127.5 - 1
        encoded = {"init": self.denoiser.encode(start[None].to(self.device))[0]}
        if spec.mask is not None:
            mask = fitted(spec.mask.array(), self.denoiser.picture_size, 1) / 255
            encoded["mask"] = self.denoiser.encode_mask((mask > 0.5).float()[None].to(self.device))[0]
        return encoded

    def start(self, sample: Sample) -> None:
        """Give the sample its first latent."""
        course = sample.course
        noise = self._noise(course.spec, 0).to(self.device)
        state = torch.zeros(NUM_COLUMNS, *self.denoiser.latent_shape, device=self.device)
        if course.start is None or course.inputs.init is None:
            state[0] = noise * course.table.initial_scale
        else:
            kept, added = course.start
            state[0] = kept * course.inputs.init + added * noise
        sample.state = state

    def pictures(self, samples: Sequence[Sample], latents: Tensor, lanes: CallRunner) -> list[Image]:
        """Decode latents (R,C,H,W) to pictures (height,width,channels), one at a time so that rows stay independent."""
        decoded = lanes.run([partial(self.denoiser.decode, latent[None]) for latent in latents])
        return [
            to_uint8(picture, sample.course.profile.rounding)[0].cpu().numpy()
            for sample, picture in zip(samples, decoded, strict=True)
        ]

    def tick(self, samples: Sequence[Sample], lanes: CallRunner) -> tuple[Tensor, list[bool]]:
        """Advance every sample by one evaluation.

        Samples are written only after everything is computed, so a tick that raised can be tried again.

        Returns:
            The guided data predictions (R,C,H,W), and for each sample whether its latent is still finite.
        """
        evaluation = gather(samples, self.device)
        output, gradient, score = self._evaluated(evaluation, lanes)
        noise = self._step_noise(evaluation)  # drawn on the CPU while a GPU evaluates
        predictions = self._predictions(evaluation, output, gradient)
        guided = combine(predictions)
        states = self._advanced(evaluation, predictions, guided, noise)
        are_finite = torch.isfinite(states[:, 0]).flatten(1).all(1).tolist()
        telemetry = self._telemetry(evaluation, predictions, guided, score)
        own = [state.clone() for state in states]  # a view would keep the whole batch alive while the sample pauses
        for sample, state, entry in zip(samples, own, telemetry, strict=True):
            sample.advance(state, entry)
        return guided.data, are_finite

    def _evaluated(self, evaluation: Evaluation, lanes: CallRunner) -> tuple[Tensor, Tensor, Tensor]:
        """Run all networks: denoiser outputs by row, classifier gradients and scores by steered sample."""
        groups, work = evaluation.alike, list[Work]()
        for (guide, shape), numbers in groups.items():
            runner = self if guide is None else self._guide(guide)
            rows = [evaluation.rows[number] for number in numbers]
            network, calibration = runner.evaluator(runner.calibration.denoiser, shape)
            conditioning = [row.conditioning for row in rows]
            work.append(work_of(network, calibration, evaluation, [row.sample for row in rows], conditioning))
        if steered := evaluation.steered:
            if self.steering is None or self.calibration.classifier is None:
                raise ValueError("this pack has no classifier")
            inputs = [evaluation.samples[number].course.inputs for number in steered]
            conditioning = [each.condition for each in inputs if each.condition is not None]
            gradient_of, calibration = self.steering.gradient, self.calibration.classifier
            work.append(work_of(gradient_of, calibration, evaluation, steered, conditioning))
        done = evaluated(work, lanes, limit=self.max_batch)
        x = evaluation.x
        gradient, score = done.pop() if steered else (x[:0], x[:0, 0, 0, 0])
        if len(done) == 1:
            return done[0][0], gradient, score
        width = max(output.shape[1] for [output] in done)
        merged = x.new_zeros(len(evaluation.rows), width, *x.shape[2:])
        for numbers, [output] in zip(groups.values(), done, strict=True):
            merged[numbers, : output.shape[1]] = output
        return merged, gradient, score

    def _predictions(self, evaluation: Evaluation, output: Tensor, gradient: Tensor) -> Predictions:
        """Convert the networks' outputs to data predictions."""
        x, rows, coefficients = evaluation.x, [row.sample for row in evaluation.rows], evaluation.coefficients
        p, q = evaluation.spread("data_from_latent"), evaluation.spread("data_from_output")
        channels = x.shape[1]
        data = p * x[rows] + q * output[:, :channels]
        courses = [sample.course for sample in evaluation.samples]
        return Predictions(
            specs=[course.spec for course in courses],
            profiles=[course.profile for course in courses],
            data=data[evaluation.first],
            from_latent=coefficients["data_from_latent"][:, None, None, None] * x,
            pairs=evaluation.pairs,
            unconditional=data[[evaluation.first[number] + 1 for number in evaluation.pairs]],
            steered=evaluation.steered,
            gradient=gradient,
            alpha=coefficients["alpha"],
            sigma=coefficients["sigma"],
            signal_kept=coefficients["signal_kept"],
            variances=self._variances(evaluation.samples, output[evaluation.first, channels:]),
        )

    def _variances(self, samples: Sequence[Sample], learned: Tensor) -> dict[int, Tensor]:
        """Variance of the step (C,H,W) by sample, if its sampler leaves the variance to the network or classifier."""
        variances: dict[int, Tensor] = {}
        for number, sample in enumerate(samples):
            table = sample.course.table
            if table.log_variance is None or sample.state is None:
                continue
            least, greatest = (float(value) for value in table.log_variance[sample.position])
            if self.denoiser.learns_variance:
                share = (learned[number] + 1) / 2
                variances[number] = (share * greatest + (1 - share) * least).exp()
            else:  # ADM's FIXED_LARGE
                fixed = least if sample.position == len(table) - 1 else greatest
                variances[number] = torch.full_like(sample.state[0], fixed).exp()
        return variances

    def _noise(self, spec: SampleSpec, draw: int) -> Tensor:
        """(C,H,W), on the CPU."""
        return draw_noise(spec.seed, spec.image_index, draw, self.denoiser.latent_shape)

    def _step_noise(self, evaluation: Evaluation) -> Tensor:
        """Noise that the samplers add in the step, (R,C,H,W) of unit variance; zeros for those that add none."""
        noise = torch.zeros(len(evaluation.samples), *self.denoiser.latent_shape)
        for row, sample in enumerate(evaluation.samples):
            if sample.course.table.adds_noise[sample.position]:
                noise[row] = self._noise(sample.course.spec, sample.position + 1)
        return noise.to(self.device)

    def _advanced(self, evaluation: Evaluation, predictions: Predictions, guided: Guided, noise: Tensor) -> Tensor:
        """The states after the evaluation, (R, NUM_COLUMNS, C, H, W)."""
        noise = noise.clone()
        for row, variance in predictions.variances.items():
            noise[row] *= variance.sqrt()
        moved = advance(evaluation.state, guided.data, noise, evaluation.weights)
        moved[:, 0] += guided.shift
        if not self.denoiser.sees_mask:
            for row, sample in enumerate(evaluation.samples):
                self._keep_unmasked(sample, moved[row, 0])
        return moved

    def _keep_unmasked(self, sample: Sample, latent: Tensor) -> None:
        """Outside the mask, replace the latent by the initial picture at the current noise level."""
        inputs = sample.course.inputs
        if inputs.mask is not None and inputs.init is not None:
            kept, added = sample.course.table.level(sample.position + 1)
            noise = self._noise(sample.course.spec, 0).to(self.device)
            latent.copy_(inputs.mask * latent + (1 - inputs.mask) * (kept * inputs.init + added * noise))

    def _telemetry(
        self, evaluation: Evaluation, predictions: Predictions, guided: Guided, score: Tensor
    ) -> list[dict[str, float] | None]:
        """Effect of guidance on each sample, or `None` for samples whose specs don't request telemetry."""
        if not any(spec.telemetry for spec in predictions.specs):
            return [None] * len(predictions.specs)
        beyond = torch.stack([data.abs() for data in guided.unlimited]).amax(0)
        clipped = (beyond > 1).float().flatten(1).mean(1).tolist()
        difference = (predictions.data - guided.unguided).flatten(1).norm(dim=1).tolist()
        gradient_norm = predictions.gradient.flatten(1).norm(dim=1).tolist()
        scores, timesteps = score.tolist(), evaluation.coefficients["timestep"].tolist()
        telemetry: list[dict[str, float] | None] = []
        for row, spec in enumerate(predictions.specs):
            entry: dict[str, float] = {"timestep": timesteps[row], "clipped": clipped[row]}
            if row in predictions.pairs:
                entry["conditional_minus_unconditional"] = difference[row]
            if row in predictions.steered and self.steering is not None:
                number = predictions.steered.index(row)
                entry[self.steering.score_name] = scores[number]
                entry["gradient_norm"] = gradient_norm[number]
            telemetry.append(entry if spec.telemetry else None)
        return telemetry
