"""The networks of one pack on one device: start samples, advance them, and decode them to pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from models.adapters import AdapterFolders
from models.batching import batch_calls
from models.caching import Kept
from models.calibration.probes import Network, only, stacked
from models.calibration.result import Calibration, NetworkCalibration
from models.classifiers import Steering
from models.denoisers import Conditioning, Denoiser
from models.engine.evaluation import Evaluation, gather, states_of
from models.engine.observing import Tally
from models.engine.preparing import Preparation, row_cost
from models.engine.sample import Course, Image, Sample
from models.engine.schedule import Rows
from models.engine.work import Evaluator, Work, evaluated, work_of
from models.guidance import Guided, Predictions, combine, effects
from models.lanes import CallRunner, Lanes, first_call
from models.noise import draw_into, draw_noise
from models.profiles import to_uint8
from models.samplers import advance
from models.samplers.states import Place, States
from models.samplers.table import LATENT
from models.samplers.update import State
from models.spec import Row

Shape = tuple[int, int, int]
CUDA_WARM_UPS = 3  # graphs are recorded at the second call


class Runner:
    """Networks of one pack on one device.

    `siblings` are the runners of all packs on the device, for guidance by a second pack; `adapters` is where LoRAs and
    ControlNets are.
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
        adapters: AdapterFolders,
    ) -> None:
        self.preparation = Preparation(
            denoiser,
            steering,
            scheduler_config,
            device=device,
            precision=calibration.denoiser.precision,
            siblings=siblings,
            adapters=adapters,
        )
        self.denoiser = denoiser
        self.steering = steering
        self.calibration = calibration
        self.device = device
        self.siblings = siblings
        self.lanes = Lanes(calibration.layout)
        self.max_batch = calibration.denoiser.sizes[-1]
        self.measured_shapes: dict[Shape, Calibration] = {}
        self.evaluator = Evaluator(denoiser)
        self.tally = Tally()
        self._states: WeakValueDictionary[Shape, States] = WeakValueDictionary()
        self._starting = Lock()  # samples of one shape have one `States`, whichever lane starts them
        self._decoded: set[tuple[int, ...]] = {denoiser.latent_shape}

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

    def calibration_for(self, shape: Shape) -> Calibration:
        """The calibration for latents of `shape`; unless its batches are measured, its rows run one at a time."""
        known = self.calibration if shape == self.denoiser.latent_shape else self.measured_shapes.get(shape)
        if known is not None:
            return known
        denoiser = self.calibration.denoiser.alone(row_cost(self.denoiser, shape))
        return replace(self.calibration, denoiser=denoiser, classifier=None, decoder=NetworkCalibration())

    def limit(self, shape: Shape) -> int:
        """Most rows of a batch of latents of `shape`."""
        is_own = shape == self.denoiser.latent_shape
        return self.max_batch if is_own else self.calibration_for(shape).denoiser.sizes[-1]

    def padded(self, rows: Rows, sample: Sample) -> Rows:
        """To what so many rows of samples of this one's shape are padded, if each network has them in one batch."""
        calibration, limit = self.calibration_for(sample.shape), self.limit(sample.shape)
        counts = zip((calibration.denoiser, calibration.classifier), rows, strict=True)
        return Rows(*(min(network.padded(count), limit) if network and count else count for network, count in counts))

    def start(self, sample: Sample) -> None:
        """Give the sample its first latent."""
        course = sample.course
        noise = self._noise(course, 0).to(self.device)
        if course.start is None or course.inputs.init is None:
            latent = noise * course.table.initial_scale
        else:
            kept, added = course.start
            latent = kept * course.inputs.init + added * noise
        place = self._new_place(sample.shape)
        place.states.write([place.row], {LATENT: latent[None]})
        sample.place = place

    def _new_place(self, shape: Shape) -> Place:
        with self._starting:
            states = self._states.get(shape)
            if states is None:
                states = self._states[shape] = States(shape, self.device)
            return states.new()

    def latents(self, samples: Sequence[Sample]) -> Tensor:
        """The latents (R,C,H,W) of samples of one shape that have started."""
        states, rows = states_of(samples)
        return states.read([LATENT], rows)[LATENT]

    def pictures(self, samples: Sequence[Sample], latents: Tensor, lanes: CallRunner) -> list[Image]:
        """Decode the latents (R,C,H,W) of samples to pictures (height,width,channels)."""
        decoder = self.calibration_for(samples[0].shape).decoder
        calls = list(batch_calls(self._decode, latents, decoder, lanes=lanes.count))
        decoded = lanes.run([call for _, call in calls])
        for (count, _), batch in zip(calls, decoded, strict=True):
            self.tally.evaluated("decoder", count, len(batch) - count)
        rows = [row for (count, _), batch in zip(calls, decoded, strict=True) for row in batch[:count]]
        return [
            to_uint8(row[None], sample.course.profile.rounding)[0].cpu().numpy()
            for sample, row in zip(samples, rows, strict=True)
        ]

    def _decode(self, latents: Tensor) -> Tensor:
        with first_call(self._decoded, tuple(latents.shape[1:])):
            return self.denoiser.decode(latents)

    def tick(self, samples: Sequence[Sample], lanes: CallRunner) -> tuple[Tensor, list[bool]]:
        """Advance every sample by one evaluation.

        Samples are written only after everything is computed, so a tick that raised can be tried again.

        Returns:
            The guided data predictions (R,C,H,W), and for each sample whether its latent is still finite.
        """
        evaluation = gather(samples, self.device)
        output, gradient, score, kept = self._evaluated(evaluation, lanes)
        noise = self._step_noise(evaluation)  # drawn on the CPU while a GPU evaluates
        predictions = self._predictions(evaluation, output, gradient)
        guided = combine(predictions)
        state = self._advanced(evaluation, predictions, guided, noise)
        # A sum is finite if all that it sums is, and one pass where a comparison of all numbers would be four.
        are_finite = [math.isfinite(total) for total in state[LATENT].flatten(1).sum(1).tolist()]
        name = "" if self.steering is None else self.steering.score_name
        telemetry = effects(predictions, guided, evaluation.coefficients["timestep"], score, name)
        evaluation.states.write(evaluation.places, state)
        for sample, entry, found in zip(samples, telemetry, kept, strict=True):
            sample.advance(entry, found)
        return guided.data, are_finite

    def _evaluated(
        self, evaluation: Evaluation, lanes: CallRunner
    ) -> tuple[Tensor, Tensor, Tensor, list[dict[Row, Kept]]]:
        """Run all networks.

        Returns:
            Denoiser outputs by row, classifier gradients and scores by steered sample, and what is kept by sample.
        """
        groups, keeping, work = evaluation.alike, evaluation.keeping, list[Work]()
        for (guide, shape, reuses), numbers in groups.items():
            runner = self if guide is None else self.siblings[guide]
            rows = [evaluation.rows[number] for number in numbers]
            extras = [row.extras for row in rows]
            reused = [row.reused for row in rows if row.reused is not None]
            keeps = bool(keeping) and not reuses and any(row.sample in keeping for row in rows)
            calibration = runner.calibration_for(evaluation.shape).denoiser
            network, calibration = runner.evaluator(calibration, evaluation.shape, shape, reuses=reuses, keeps=keeps)
            conditioning = [row.asked.conditioning for row in rows]
            count = partial(runner.tally.evaluated, "denoiser")
            work.append(work_of(network, calibration, evaluation, numbers, conditioning, count, extras, reused))
        if steered := evaluation.steered:
            if self.steering is None or self.calibration.classifier is None:
                raise ValueError("this pack has no classifier")
            inputs = [evaluation.samples[number].course.inputs for number in steered]
            conditioning = [each.condition for each in inputs if each.condition is not None]
            gradient_of, calibration = self.steering.gradient, self.calibration.classifier
            count = partial(self.tally.evaluated, "classifier")
            work.append(work_of(gradient_of, calibration, evaluation, steered, conditioning, count))
        done = evaluated(work, lanes, limit=self.limit(evaluation.shape))
        x = evaluation.x
        gradient, score = done.pop() if steered else (x[:0], x.new_zeros(0))
        kept = evaluation.kept([found for _, *found in done])
        repeats = evaluation.repeats
        if len(done) == 1 and not repeats:
            return done[0][0], gradient, score, kept
        width = max(output.shape[1] for output, *_ in done)
        merged = x.new_zeros(len(evaluation.rows), width, *x.shape[2:])
        for numbers, (output, *_) in zip(groups.values(), done, strict=True):
            merged[numbers, : output.shape[1]] = output
        if repeats:
            merged[list(repeats)] = merged[list(repeats.values())]
        return merged, gradient, score, kept

    def _predictions(self, evaluation: Evaluation, output: Tensor, gradient: Tensor) -> Predictions:
        """Convert the networks' outputs to data predictions."""
        x, coefficients, count = evaluation.x, evaluation.coefficients, len(evaluation.samples)
        p, q = (coefficients[name].view(-1, 1, 1, 1) for name in ("data_from_latent", "data_from_output"))
        data = p * evaluation.inputs + q * output[:, : x.shape[1]]
        courses = [sample.course for sample in evaluation.samples]
        return Predictions(
            specs=[course.spec for course in courses],
            profiles=[course.profile for course in courses],
            data=data[:count] if evaluation.pairs else data,
            x=x,
            data_from_latent=coefficients["data_from_latent"],
            pairs=evaluation.pairs,
            unconditional=data[count:],
            steered=evaluation.steered,
            gradient=gradient,
            alpha=coefficients["alpha"],
            sigma=coefficients["sigma"],
            signal_kept=coefficients["signal_kept"],
            variances=self._variances(evaluation.samples, output),
        )

    def _variances(self, samples: Sequence[Sample], output: Tensor) -> dict[int, Tensor]:
        """Variance of the step (C,H,W) by sample, if its sampler leaves the variance to the network or classifier."""
        variances: dict[int, Tensor] = {}
        for number, sample in enumerate(samples):
            table = sample.course.table
            if table.log_variance is None:
                continue
            least, greatest = (float(value) for value in table.log_variance[sample.position])
            if self.denoiser.learns_variance:
                share = (output[number, sample.shape[0] :] + 1) / 2
                variances[number] = (share * greatest + (1 - share) * least).exp()
            else:  # ADM's FIXED_LARGE
                fixed = least if sample.position == len(table) - 1 else greatest
                variances[number] = torch.full(sample.shape, fixed, device=output.device).exp()
        return variances

    def _noise(self, course: Course, draw: int) -> Tensor:
        """(C,H,W), on the CPU."""
        return draw_noise(course.spec.seed, course.spec.image_index, draw, course.shape)

    def _step_noise(self, evaluation: Evaluation) -> Tensor | None:
        """Noise that the samplers add in the step, (R,C,H,W) of unit variance; zeros for those that add none."""
        if not evaluation.adds_noise:
            return None
        noise = np.zeros((len(evaluation.samples), *evaluation.shape), np.float32)
        for row in evaluation.adds_noise:
            sample = evaluation.samples[row]
            spec = sample.course.spec
            draw_into(noise[row], spec.seed, spec.image_index, sample.position + 1)
        return torch.from_numpy(noise).to(self.device)

    def _advanced(
        self, evaluation: Evaluation, predictions: Predictions, guided: Guided, noise: Tensor | None
    ) -> State:
        """What the samples keep after the evaluation, (R,C,H,W) each, of all that any of them keeps."""
        if noise is not None:
            for row, variance in predictions.variances.items():
                noise[row] *= variance.sqrt()
        moved = advance(evaluation.state, guided.data, noise, evaluation.weights)
        latents = moved[LATENT] if guided.shift is None else moved[LATENT] + guided.shift
        if not self.denoiser.sees_mask:
            for row, sample in enumerate(evaluation.samples):
                if sample.course.inputs.mask is not None:
                    self._keep_unmasked(sample, latents[row])
        kept = set[int]().union(*(sample.course.table.kept for sample in evaluation.samples))
        return {column: moved[column] if column in moved else torch.zeros_like(latents) for column in kept} | {
            LATENT: latents
        }

    def _keep_unmasked(self, sample: Sample, latent: Tensor) -> None:
        """Outside the mask, replace the latent by the initial picture at the current noise level."""
        inputs = sample.course.inputs
        if inputs.mask is not None and inputs.init is not None:
            kept, added = sample.course.table.level(sample.position + 1)
            noise = self._noise(sample.course, 0).to(self.device)
            latent.copy_(inputs.mask * latent + (1 - inputs.mask) * (kept * inputs.init + added * noise))
